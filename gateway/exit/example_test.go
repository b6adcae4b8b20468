package exit_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"ptgate/gateway/answer"
	"ptgate/gateway/exit"
	"ptgate/gateway/outcome"
	"ptgate/routes"
)

func Example() {
	settings := &exit.Settings{Policy: exit.Policy{DenyPrivate: true}}
	log := slog.New(slog.DiscardHandler)
	e := exit.New(func() *exit.Settings { return settings }, outcome.New(log), log)
	_, err := e.Dial(context.Background(), routes.Target{Addr: netip.MustParseAddr("127.0.0.1"), Port: 22})
	fmt.Printf("%v: %v\n", answer.Of(err), err)
	// Output:
	// blocked: exit: address denied by [exit] deny
}
