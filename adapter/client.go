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

	// Transports are the names of the transports to enable, at least one.
	Transports []string

	// Proxy is the upstream proxy of the child's own connections; see
	// CheckProxy. A child that does not confirm it is stopped. Nil: none.
	Proxy *url.URL
}

// ClientAdapter runs a client child and dials bridges through it. Its methods
// may be called from any goroutine. After a successful Start, call Close.
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

// Method returns what the child has announced for a transport. If there is
// nothing, the error is a *MethodError.
func (a *ClientAdapter) Method(transport string) (ClientMethod, error) {
	m, err := a.method(transport)
	return m.client, err
}

// DialTransport dials the bridge at addr (host:port) through the child. args
// are all args of the bridge. The context bounds the dial, and so does a
// limit of some minutes. Neither has an effect on the connection afterwards.
// The caller closes the connection.
//
// Success means that the child has reported success. Some programs do so
// before they have dialled. Only an answer from the far end shows that the
// bridge works.
//
// The connection is a *Conn, which cannot be half-closed. An error is a
// *DialError, which wraps a Reply if the child has sent one.
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
