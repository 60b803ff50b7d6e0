KILL QUERY WHERE Settings['log_comment'] = {log_comment:String} ASYNC
