SELECT concat(hostName(), ':', toString(tcpPort()))
