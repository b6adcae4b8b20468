//go:build unix

package adapter_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"strings"

	"ptgate/adapter"
)

// program is a stand-in for a real transport program, such as
//
//	adapter.Config{Exec: []string{"obfs4proxy"}}
//
// so that these examples run anywhere.
func program(role string) adapter.Config {
	return adapter.Config{
		Exec: []string{os.Args[0]},
		Env:  []string{"FAKE_PT_ROLE=" + role, "GORACE=atexit_sleep_ms=0", "GOCOVERDIR=" + os.TempDir()},
	}
}

// A client with args and an upstream proxy.
func Example_client() {
	ctx := context.Background()
	client := adapter.NewClient(adapter.ClientConfig{
		Config:     program("proxy"),
		Transports: []string{"fake"},
		Proxy:      &url.URL{Scheme: "socks5", Host: "127.0.0.1:1080"},
	})
	if err := client.Start(ctx); err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	args := adapter.Args{{Key: "cert", Value: "AbCd"}, {Key: "iat-mode", Value: "0"}}
	conn, err := client.DialTransport(ctx, "fake", "192.0.2.10:443", args)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(line)
	// Output: {"User":"cert=AbCd;iat-mode=0","Password":"\u0000","Addr":"192.0.2.10:443","NoAuth":false}
}

// A bridge as Tor users paste it.
func ExampleParseBridgeLine() {
	bridge, err := adapter.ParseBridgeLine("Bridge obfs4 192.0.2.20:443 0123456789ABCDEF0123456789ABCDEF01234567 cert=AbCd iat-mode=0")
	if err != nil {
		log.Fatal(err)
	}
	cert, _ := bridge.Args.Get("cert")
	fmt.Println(bridge.Transport, bridge.Addr, cert)

	_, err = adapter.ParseBridgeLine("obfs4 192.0.2.20 cert=AbCd")
	fmt.Println(err)
	// Output:
	// obfs4 192.0.2.20:443 AbCd
	// bridge line: column 7: "192.0.2.20" is not address:port: the port is missing, as in "192.0.2.20:443"
}

// A server in front of a fixed service, and what clients need to reach it.
func Example_server() {
	server := adapter.NewServer(adapter.ServerConfig{
		Config:  program("server"),
		Forward: "127.0.0.1:22",
	})
	if err := server.AddTransport("fake", "127.0.0.1:0", nil); err != nil { // any port
		log.Fatal(err)
	}
	if err := server.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	announced, err := server.Method("fake")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(announced.Addr)
	for _, arg := range announced.Args {
		fmt.Println(arg.Key, arg.Value)
	}
	// Output:
	// 127.0.0.1:4433
	// cert a=b,c\
	// k 1
	// k 2
	// plain x=y
}

// A server that serves connections itself and lets only local clients in.
func Example_extServer() {
	ctx := context.Background()
	server := adapter.NewExtServer(adapter.ExtServerConfig{
		Config: program("ext server"),
		PreConnect: func(info adapter.ClientInfo) bool {
			return info.Addr.Addr().IsLoopback()
		},
		Handler: func(_ context.Context, c net.Conn, info adapter.ClientInfo) {
			fmt.Fprintf(c, "hello, you come from %v by %s\n", info.Addr.Addr(), info.Transport)
		},
	})
	if err := server.AddTransport("fake", "127.0.0.1:0", nil); err != nil {
		log.Fatal(err)
	}
	if err := server.Start(ctx); err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	// The stand-in has no obfuscation, so a plain connection reaches it.
	announced, err := server.Method("fake")
	if err != nil {
		log.Fatal(err)
	}
	c, err := net.Dial("tcp", announced.Addr)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	greeting, _ := io.ReadAll(c)
	fmt.Print(string(greeting))
	// Output: hello, you come from 127.0.0.1 by fake
}

// A server as a net.Listener.
func ExampleExtServerAdapter_Accept() {
	server := adapter.NewExtServer(adapter.ExtServerConfig{Config: program("ext server")})
	if err := server.AddTransport("fake", "", nil); err != nil {
		log.Fatal(err)
	}
	if err := server.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	announced, _ := server.Method("fake")
	c, err := net.Dial("tcp", announced.Addr)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	var listener net.Listener = server // for http.Serve and the like
	conn, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(conn.(*adapter.Conn).ClientInfo().Transport, conn.RemoteAddr().String() == c.LocalAddr().String())
	conn.Close()
	server.Close()
	_, err = listener.Accept()
	fmt.Println(errors.Is(err, net.ErrClosed))
	// Output:
	// fake true
	// true
}

// Several transports in one child, one of which does not come up.
func ExampleClientAdapter_Method() {
	client := adapter.NewClient(adapter.ClientConfig{
		Config:     program("two, one fails"),
		Transports: []string{"fake", "broken"},
	})
	if err := client.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	method, err := client.Method("fake")
	fmt.Println(method.Protocol, strings.HasPrefix(method.Addr, "127.0.0.1:"), err)
	_, err = client.Method("broken")
	fmt.Println(err)
	// Output:
	// socks5 true <nil>
	// transport "broken": refused by the transport program: "no such thing"
}

// A start that fails says where.
func ExampleStartError() {
	client := adapter.NewClient(adapter.ClientConfig{
		Config:     program("env-error"),
		Transports: []string{"fake"},
	})
	err := client.Start(context.Background())
	if failure, ok := errors.AsType[*adapter.StartError](err); ok {
		fmt.Printf("%s: %v: %s\n", failure.Stage, failure.Err, failure.Message)
	}
	// Output: environment: environment refused: no such variable
}

// What a child says arrives as events.
func ExampleConfig_onEvent() {
	config := program("talkative")
	config.OnEvent = func(e adapter.Event) {
		switch e.Kind {
		case adapter.EventLog:
			fmt.Printf("%s: %q\n", e.Severity, e.Message)
		case adapter.EventStatus:
			fmt.Println("status of", e.Transport, e.Params)
		}
	}
	client := adapter.NewClient(adapter.ClientConfig{Config: config, Transports: []string{"fake"}})
	if err := client.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	client.Close()
	client.Wait()
	// Output:
	// debug: "before \"VERSION\""
	// status of fake [{STEP 1} {WORDS two words}]
	// error: "after\nDONE"
	// notice: "plain"
	// status of  [{X 1}]
}

// The state directory is a temporary one where none is given.
func ExampleConfig_stateDir() {
	config := program("good")
	temp, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(temp)
	os.Setenv("TMPDIR", temp)
	defer os.Unsetenv("TMPDIR")
	count := func() int {
		files, _ := os.ReadDir(temp)
		return len(files)
	}
	client := adapter.NewClient(adapter.ClientConfig{Config: config, Transports: []string{"fake"}})
	if err := client.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("while it runs:", count())
	client.Close()
	fmt.Println("afterwards:", count())
	// Output:
	// while it runs: 1
	// afterwards: 0
}

// Args that would not fit are found when a configuration is loaded.
func ExampleArgs_CheckClient() {
	args := adapter.Args{{Key: "cert", Value: strings.Repeat("x", 600)}}
	fmt.Println(args.CheckClient())
	// Output: args too long: 605 bytes escaped, at most 510 fit
}
