package backend

import (
	"time"
)

// ReleaseWait bounds how long a released tap may take to go.
const ReleaseWait = 5 * time.Second
