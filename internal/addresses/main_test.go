package addresses_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

// agentEnv has the test binary run as a VMM whose guest has an agent: the value is the agent's
// socket.
const agentEnv = "VMNET_TEST_AGENT"

func TestMain(m *testing.M) {
	if path := os.Getenv(agentEnv); path != "" {
		fmt.Fprintln(os.Stderr, serveAgent(path))
		os.Exit(1)
	}
	leaktest.Main(m)
}

// serveAgent answers each client's commands, until the process is killed.
func serveAgent(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		for lines := bufio.NewScanner(c); lines.Scan(); {
			if _, id, ok := strings.Cut(lines.Text(), `"id":`); ok {
				fmt.Fprintf(c, "\xff{\"return\":%s}\n", strings.TrimRight(id, "}"))
			} else {
				fmt.Fprintln(c, `{"return":[{"name":"eth0","hardware-address":"52:54:00:00:00:01","ip-addresses":[`+
					`{"ip-address":"10.9.0.4"},{"ip-address":"fd09::4"}]},{"name":"eth1",`+
					`"hardware-address":"52:54:00:00:00:02","ip-addresses":[{"ip-address":"10.9.0.99"}]}]}`)
			}
		}
		_ = c.Close()
	}
}
