package routes_test

import (
	"fmt"

	"ptgate/routes"
)

func Example() {
	var b routes.Builder
	for rule, patterns := range [][]string{
		{"git.example.org:22", ".example.com"},
		{"*.example.org", "203.0.113.0/24"},
		{"mail.example.com"}, // in vain: .example.com stands before it
	} {
		for _, s := range patterns {
			p, err := routes.ParsePattern(s, nil)
			if err != nil {
				fmt.Println(err)
				return
			}
			if _, err := b.Add(rule, p); err != nil {
				fmt.Println(err)
				return
			}
		}
	}
	table := b.Table()

	for _, tg := range []routes.Target{
		{Name: "git.example.org", Port: 22},
		{Name: "git.example.org", Port: 443},
		{Name: "www.example.com", Port: 443},
		{Name: "example.org", Port: 443},
	} {
		if m, ok := table.Lookup(tg); ok {
			fmt.Printf("%s:%d: rule %d, by %s\n", tg.Name, tg.Port, m.Rule, table.Pattern(m))
		} else {
			fmt.Printf("%s:%d: no rule\n", tg.Name, tg.Port)
		}
	}
	if by, dead := table.Dead(2); dead {
		fmt.Println("rule 2 never matches because of", table.Pattern(by))
	}
	// Output:
	// git.example.org:22: rule 0, by git.example.org:22
	// git.example.org:443: rule 1, by *.example.org
	// www.example.com:443: rule 0, by .example.com
	// example.org:443: no rule
	// rule 2 never matches because of .example.com
}

func ExampleParsePattern() {
	for _, s := range []string{"*.Example.com:80-90", "2001:db8::/32", "*example.com", "10.0.0.1/8"} {
		p, err := routes.ParsePattern(s, nil)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(p)
	}
	// Output:
	// *.example.com:80-90
	// 2001:db8::/32
	// pattern "*example.com": has a "*" that is not a whole label: write "*.example.com" for what is below it, ".example.com" for that and the name itself
	// pattern "10.0.0.1/8": has address bits outside its network: write "10.0.0.0/8" for the network, "10.0.0.1" for the one address
}
