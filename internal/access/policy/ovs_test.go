package policy

import "testing"

// TestProfileOfOVS: a profile names the database of its bridge, which QEMU cannot.
func TestProfileOfOVS(t *testing.T) {
	p := parse(t, "profiles:\n  int: {bridge: br-int, ovsdb: /run/ovs/db.sock}\n")
	if got, err := p.Profile("int"); err != nil || got.OVSDB != "/run/ovs/db.sock" {
		t.Errorf("%+v, %v", got, err)
	}
	for text, want := range map[string]string{
		"profiles:\n  a: {network: lab, ovsdb: /run/db.sock}\n":   "f:2:3: profile a: ovsdb and network",
		"profiles:\n  a: {bridge: br0, ovsdb: db.sock}\n":         `f:2:27: ovsdb: "db.sock": want a socket's absolute`,
		"profiles:\n  a: {bridge: br0, ovsdb: /run/*}\n":          `f:2:27: ovsdb: "/run/*": want the path of one socket`,
		"profiles:\n  a: {bridge: br0, ovsdb: /run/../db.sock}\n": `f:2:27: ovsdb: "/run/../db.sock": want a socket's`,
		"rules:\n- {ovsdb: [/run/*/../db.sock]}\n":                `f:2:12: ovsdb: "/run/*/../db.sock": want a socket's`,
	} {
		_, err := Parse("f", []byte(text))
		checkError(t, err, want)
	}
}

// TestMatchSocket: a user's --ovsdb is connected to with privilege, so a pattern matches no path
// that leads out of its directory.
func TestMatchSocket(t *testing.T) {
	for _, tc := range []struct {
		glob, path string
		want       bool
	}{
		{"/run/ovs/db.sock", "/run/ovs/db.sock", true},
		{"/run/ovs-*/db.sock", "/run/ovs-a/db.sock", true},
		{"/run/ovs-?/*.sock", "/run/ovs-a/db.sock", true},
		{"/run/ovs-*/db.sock", "/run/ovs-a/b/db.sock", false},
		{"/run/ovs-?db.sock", "/run/ovs-/db.sock", false},
		{"/run/*", "/run/", false},
		{"/run/*", "/run/.", false},
		{"/run/*", "/run/..", false},
		{"/run/*/db.sock", "/run/../db.sock", false},
		{"/run/*/*/db.sock", "/run/ovs/../db.sock", false},
		{"/run/ovs/db.sock", "/run//ovs/db.sock", false},
		{"/run/ovs/db.sock", "/run/./ovs/db.sock", false},
		{"/*", "db.sock", false},
		{"/*", "", false},
	} {
		if got := matchAnyPath([]string{tc.glob}, tc.path); got != tc.want {
			t.Errorf("matchAnyPath(%q, %q) = %v", tc.glob, tc.path, got)
		}
	}
}
