package control

// What a request may ask for.
const (
	doInfo         = "info"
	doPorts        = "ports"
	doAddPort      = "add-port"
	doSetLabel     = "set-label"
	doRemovePort   = "remove-port"
	doFDB          = "fdb"
	doFlush        = "flush"
	doAddStatic    = "add-static"
	doRemoveStatic = "remove-static"
	doStop         = "stop"
)
