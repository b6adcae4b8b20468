package adapter

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ServerConfig configures a ServerAdapter.
type ServerConfig struct {
	Config

	// Forward is the address to which the child connects its clients, a literal
	// ip:port.
	Forward string
}

// ServerAdapter runs a server child whose clients all reach one fixed
// address. Its methods may be used from any goroutine.
type ServerAdapter struct {
	server
	forward string
}

// server is what both kinds of server adapter share.
type server struct {
	*instance
	listens []listen // guarded by instance.mu
}

// listen is a transport to be served.
type listen struct {
	transport, bind string
	options         Args
}

// NewServer makes an adapter; nothing runs before Start, which also reports
// what is wrong with the configuration.
func NewServer(cfg ServerConfig) *ServerAdapter {
	return &ServerAdapter{server{instance: newInstance(cfg.Config)}, cfg.Forward}
}

// AddTransport adds a transport to be served, before Start. bind is the literal
// ip:port it listens on (see BindAddr); port 0 lets the system choose one, and an
// empty bind is 127.0.0.1:0. After Start, Method returns the result. options are
// passed to the transport, in order.
func (a *server) AddTransport(name, bind string, options Args) error {
	fail := func(err error) error { return fmt.Errorf("add transport %q: %w", name, err) }
	if !validTransport(name) {
		return fail(errors.New("not a transport name"))
	}
	if bind == "" {
		bind = "127.0.0.1:0"
	}
	addr, err := netip.ParseAddrPort(bind)
	if err != nil || addr.Addr().Zone() != "" {
		return fail(fmt.Errorf("bind %q is not a literal address and a port", bind))
	}
	if err := options.checkServer(); err != nil {
		return fail(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.started {
		return fail(ErrStarted)
	}
	for _, l := range a.listens {
		if l.transport == name {
			return fail(errors.New("given twice"))
		}
	}
	a.listens = append(a.listens, listen{name, BindAddr(addr).String(), options})
	return nil
}

// Start runs the child and returns when it is ready: at least one transport
// has come up. The context and StartTimeout bound the start, not what
// follows. An error is a *StartError, and then nothing is left behind.
func (a *ServerAdapter) Start(ctx context.Context) error {
	check := func() error {
		if addr, err := netip.ParseAddrPort(a.forward); err != nil || addr.Port() == 0 {
			return fmt.Errorf("forward %q is not a literal address and a port", a.forward)
		}
		return nil
	}
	return a.startServer(ctx, check, func(string) ([]string, func(), *StartError) {
		return []string{"TOR_PT_ORPORT=" + a.forward, "TOR_PT_EXTENDED_SERVER_PORT="}, nil, nil
	})
}

// startServer starts the child. port is a plan's prepare for the variables
// that name the parent's port; the others are the same for both kinds.
func (a *server) startServer(ctx context.Context, check func() error, port func(stateDir string) ([]string, func(), *StartError)) error {
	a.mu.Lock()
	listens := a.listens
	a.mu.Unlock()
	var names, binds, options []string
	for _, l := range listens {
		names = append(names, l.transport)
		// pt-spec 3.2.3: one entry for every transport; without it some
		// programs drop the transport silently.
		binds = append(binds, l.transport+"-"+l.bind)
		if len(l.options) > 0 {
			options = append(options, l.options.EncodeServer(l.transport))
		}
	}
	return a.start(ctx, plan{
		check:      func() error { return errors.Join(checkTransports(names), check()) },
		keyword:    "SMETHOD",
		transports: names,
		prepare: func(stateDir string) ([]string, func(), *StartError) {
			env, undo, failure := port(stateDir)
			if failure != nil {
				return nil, nil, failure
			}
			env = append(env,
				"TOR_PT_SERVER_TRANSPORTS="+strings.Join(names, ","),
				"TOR_PT_SERVER_BINDADDR="+strings.Join(binds, ","))
			if len(options) > 0 {
				env = append(env, "TOR_PT_SERVER_TRANSPORT_OPTIONS="+strings.Join(options, ";"))
			}
			return env, undo, nil
		},
	})
}

// Method returns what the child has announced for a transport. If there is nothing,
// the error is a *MethodError.
func (a *server) Method(transport string) (ServerMethod, error) {
	m, err := a.method(transport)
	return m.server, err
}
