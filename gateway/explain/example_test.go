package explain_test

import (
	"fmt"
	"os"
	"path/filepath"

	"ptgate/gateway/config"
	"ptgate/gateway/explain"
)

func ExampleDestination() {
	dir, err := os.MkdirTemp("", "explain-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "client.toml")
	text := "[[route]]\nto = \".example.com\"\nvia = \"direct\"\n[[route]]\nto = \"ads.example\"\nvia = \"block\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		panic(err)
	}
	cfg, _ := config.Load(path)
	for _, name := range []string{"www.example.com", "ads.example:80", "else.example", "https://a.example/"} {
		way, err := explain.Destination(cfg, name, false)
		fmt.Println(way.Text, err)
	}
	// Output:
	// direct, without any bridge, by route 1 at line 1 (private addresses are blocked) <nil>
	// blocked by route 2 at line 4 <nil>
	// no route takes it: blocked (SOCKS5 reply 2, HTTP 403) <nil>
	//  invalid destination: a URL: write only its host, a.example
}
