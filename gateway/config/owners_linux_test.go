package config

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestOwners(t *testing.T) {
	const route = "\n[[route]]\nto = \"*\"\nvia = \"direct\"\n"
	self := uint32(os.Geteuid())
	for _, c := range []struct {
		owners string
		want   []uint32
		errs   []string // each a part of a problem
	}{
		{`[]`, nil, nil},
		{`"self"`, []uint32{self}, nil},
		{`["self", "self"]`, []uint32{self}, nil},
		{`["root", "4711", 815]`, []uint32{0, 4711, 815}, nil},
		{`1000`, []uint32{1000}, nil},
		{`["no-such-user"]`, nil, []string{`:2: [listen]: owners: there is no user "no-such-user" on this machine`}},
		{`["-1", ""]`, nil, []string{`no user "-1"`, `no user ""`}},
		{`[true, 4711]`, nil, []string{`owners must be a list of users, as in owners = ["self", "alice", 1000]`}},
		{`true`, nil, []string{"owners must be a string or a list"}},
		{"\"self\"\nsocks5 = \"192.0.2.1:1080\"\nallow = \"192.0.2.0/24\"", nil, []string{":3: [listen]: owners is for loopback addresses"}},
	} {
		cfg, problems := testLoader.Load(write(t, "ptgate.toml", "[listen]\nowners = "+c.owners+route))
		if len(problems) != len(c.errs) {
			t.Errorf("%s: %v", c.owners, problems)
			continue
		}
		for i, want := range c.errs {
			if !strings.Contains(problems[i].String(), want) {
				t.Errorf("%s: %v, want %s", c.owners, problems[i], want)
			}
		}
		if len(c.errs) == 0 && !slices.Equal(cfg.Listen.Owners, c.want) {
			t.Errorf("%s: %v, want %v", c.owners, cfg.Listen.Owners, c.want)
		}
	}
}

// The page is for those who may use the gateway, if [admin] names no others.
func TestAdminOwners(t *testing.T) {
	const text = "[listen]\nowners = 4711\n[[route]]\nto = \"*\"\nvia = \"direct\"\n[admin]\n"
	for more, want := range map[string][]uint32{"": {4711}, "owners = 815": {815}, "owners = []": nil} {
		cfg, problems := testLoader.Load(write(t, "ptgate.toml", text+more))
		if cfg == nil || !slices.Equal(cfg.Admin.Owners, want) {
			t.Errorf("%q: %+v, want %v (%v)", more, cfg, want, problems)
		}
	}
	cfg, problems := testLoader.Load(write(t, "ptgate.toml", text+"listen = \"192.0.2.1:9180\"\nowners = 815\nusers = { me = \"word\" }"))
	if cfg != nil || len(problems) != 1 || !strings.Contains(problems[0].String(), ":7: [admin]: owners is for loopback addresses") {
		t.Error(problems)
	}
}
