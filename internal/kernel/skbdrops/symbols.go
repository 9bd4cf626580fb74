package skbdrops

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// symbols is where the kernel lists its functions (proc_kallsyms(5)), to those who may know.
const symbols = "/proc/kallsyms"

// name fills in the functions in which addresses are, as far as they are known.
func name(places map[uint64]string) {
	if len(places) == 0 {
		return
	}
	f, err := os.Open(symbols)
	if err != nil {
		return
	}
	defer f.Close()
	begins := map[uint64]uint64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		hex, rest, _ := strings.Cut(lines.Text(), " ")
		at, err := strconv.ParseUint(hex, 16, 64)
		kind, symbol, ok := strings.Cut(rest, " ")
		if err != nil || !ok || at == 0 || strings.ToLower(kind) != "t" {
			continue
		}
		for place := range places {
			if at <= place && at > begins[place] {
				symbol, _, _ := strings.Cut(symbol, "\t")
				begins[place], places[place] = at, symbol
			}
		}
	}
}
