package destination_test

import (
	"fmt"

	"ptgate/gateway/destination"
)

func Example() {
	for _, s := range []string{"Bücher.Example.:443", "[::ffff:192.0.2.1]:22", "0x7f.1:80", "example.com"} {
		target, err := destination.Parse(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(destination.Format(target))
	}
	// Output:
	// xn--bcher-kva.example:443
	// 192.0.2.1:22
	// invalid destination: the host looks like an IPv4 address, but is not four decimal numbers
	// invalid destination: no port: write HOST:PORT
}
