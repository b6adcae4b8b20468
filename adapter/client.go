package adapter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// ClientConfig configures a ClientAdapter.
type ClientConfig struct {
	Config

	// Transports are the names of those to be enabled, at least one.
	Transports []string

	// Proxy is the upstream proxy of the child's own connections, as
	// CheckProxy wants it. A child that does not confirm it is stopped.
	// Nil: none.
	Proxy *url.URL
}

// ClientAdapter runs a client child and dials bridges through it. Its methods
// may be used from any goroutine.
type ClientAdapter struct {
	*instance
	cfg ClientConfig
}

// NewClient makes an adapter; nothing runs before Start, which also reports
// what is wrong with the configuration.
func NewClient(cfg ClientConfig) *ClientAdapter {
	return &ClientAdapter{newInstance(cfg.Config), cfg}
}

// Start runs the child and returns when it is ready: at least one transport
// has come up. The context and StartTimeout bound the start, not what
// follows. An error is a *StartError, and then nothing is left behind.
func (a *ClientAdapter) Start(ctx context.Context) error {
	return a.start(ctx, plan{
		check: func() error {
			err := checkTransports(a.cfg.Transports)
			if a.cfg.Proxy == nil {
				return err
			}
			if bad := CheckProxy(a.cfg.Proxy); bad != nil {
				err = errors.Join(err, fmt.Errorf("upstream proxy: %w", bad))
			}
			return err
		},
		keyword:    "CMETHOD",
		transports: a.cfg.Transports,
		proxy:      a.cfg.Proxy != nil,
		prepare: func(string) ([]string, func(), *StartError) {
			// pt-spec 3.2.2
			env := []string{"TOR_PT_CLIENT_TRANSPORTS=" + strings.Join(a.cfg.Transports, ",")}
			if a.cfg.Proxy != nil {
				env = append(env, "TOR_PT_PROXY="+proxyURL(a.cfg.Proxy).String())
			}
			return env, nil, nil
		},
	})
}

// Method returns what the child announced for a transport, or a *MethodError
// that says why that one is not there.
func (a *ClientAdapter) Method(transport string) (ClientMethod, error) {
	m, err := a.method(transport)
	return m.client, err
}

// DialTransport dials the bridge at addr (host:port) through the child. args
// are the bridge's whole set: no connection inherits another's. The context
// bounds the dial, and so does a limit of some minutes; neither touches the
// connection afterwards.
//
// Success means that the child says so, which some say before they dialled:
// only an answer from the far end proves a bridge.
//
// The connection is a *Conn. It cannot be half-closed, because transport
// programs end both directions at the first EOF and lose what was under way.
// An error is a *DialError, which wraps a Reply where the child sent one.
func (a *ClientAdapter) DialTransport(ctx context.Context, transport, addr string, args Args) (net.Conn, error) {
	fail := func(stage DialStage, err error) (net.Conn, error) {
		return nil, &DialError{Transport: transport, Stage: stage, Err: err}
	}
	m, err := a.method(transport)
	if err != nil {
		return fail(StagePrepare, err)
	}
	select {
	case <-a.done:
		if err := a.Err(); err != nil {
			return fail(StagePrepare, err)
		}
		return fail(StagePrepare, ErrClosed)
	default:
	}
	request, err := newSOCKSRequest(m.client.Protocol, addr, args)
	if err != nil {
		return fail(StagePrepare, err)
	}
	tcp, stage, err := request.dial(ctx, m.client.Addr)
	if err != nil {
		return fail(stage, err)
	}
	return &Conn{tcp: tcp}, nil
}
