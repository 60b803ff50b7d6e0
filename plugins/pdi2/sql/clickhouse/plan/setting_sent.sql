SELECT getSetting('log_comment')
