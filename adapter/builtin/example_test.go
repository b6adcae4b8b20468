package builtin_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"ptgate/adapter/builtin"
)

// Both ends of an obfs4 connection in one process.
func Example() {
	state, err := os.MkdirTemp("", "state")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(state)

	server, err := builtin.Listen(builtin.ServerConfig{Transport: "obfs4", StateDir: state, Bind: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	client, err := builtin.NewClient(builtin.ClientConfig{Transport: "obfs4"})
	if err != nil {
		log.Fatal(err)
	}
	near, err := client.Dial(context.Background(), server.Addr().String(), server.Args())
	if err != nil {
		log.Fatal(err)
	}
	defer near.Close()
	far, err := server.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer far.Close()

	fmt.Fprint(near, "through obfs4")
	if half, ok := near.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	heard, err := io.ReadAll(far)
	fmt.Printf("%s, %v\n", heard, err)
	// Output: through obfs4, <nil>
}

func ExampleTransports() {
	for _, row := range builtin.Transports() {
		if row.Inside() {
			fmt.Printf("%s: client %t, server %t, in the same process %t\n", row.Name, row.Client, row.Server, row.InProcess)
		}
	}
	// Output:
	// obfs4: client true, server true, in the same process true
	// webtunnel: client true, server true, in the same process true
	// meek_lite: client true, server false, in the same process false
}
