package leaktest

// What the tests set in the environment of an enclosed program.
const (
	StageEnv    = stageEnv
	PidsEnv     = pidsEnv
	PidsMachine = pidsMachine
	BesideEnv   = besideEnv
)

// EncloseInUserNS is what MainInUserNS does before the tests.
func EncloseInUserNS() { enclose(true) }
