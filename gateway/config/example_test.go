package config_test

import (
	"fmt"
	"os"
	"path/filepath"

	"ptgate/gateway/config"
	"ptgate/gateway/destination"
)

func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "ptgate.toml")
	err = os.WriteFile(path, []byte(`
[[route]]
to = [".example.com", "*:25"]
via = "block"

[[route]]
to = "*"
via = "direct"
`), 0o600)
	if err != nil {
		fmt.Println(err)
		return
	}

	cfg, problems := config.Load(path)
	for _, p := range problems {
		fmt.Println(p)
	}
	if cfg == nil {
		return
	}
	for _, s := range []string{"www.Example.com:443", "mail.example.net:25", "example.net:443"} {
		target, err := destination.Parse(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		if m, ok := cfg.Table.Lookup(target); ok {
			_, line, pattern := cfg.Where(m)
			fmt.Printf("%s: blocked %v, by %q in line %d\n", s, cfg.Routes[m.Rule].Action == config.ActionBlock, pattern, line)
		}
	}
	// Output:
	// www.Example.com:443: blocked true, by ".example.com" in line 3
	// mail.example.net:25: blocked true, by "*:25" in line 3
	// example.net:443: blocked false, by "*" in line 7
}

func ExampleProblem() {
	fmt.Println(config.Problem{File: "ptgate.toml", Line: 7, Message: `unknown key "vai": did you mean "via"?`})
	fmt.Println(config.Problem{File: "ptgate.toml", Line: 9, Message: `bridge "oslo": no route leads to it`, Warning: true})
	// Output:
	// ptgate.toml:7: unknown key "vai": did you mean "via"?
	// ptgate.toml:9: warning: bridge "oslo": no route leads to it
}
