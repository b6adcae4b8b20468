package adapter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
)

// ClientMethod is what a client child announced for a transport.
type ClientMethod struct {
	Protocol string // socks5 or socks4
	Addr     string // of its SOCKS listener, on loopback
}

// ServerMethod is what a server child announced for a transport.
type ServerMethod struct {
	Addr string // the address that it listens on; some programs announce a placeholder
	Args Args   // what clients need in their bridge line, in order
}

// versions are the protocol versions offered to a child, in
// TOR_PT_MANAGED_TRANSPORT_VER (pt-spec 3.2.1).
var versions = []string{"1"}

// method is the outcome for one transport. Only one of client and server is
// in use.
type method struct {
	client ClientMethod
	server ServerMethod
	err    error
}

// handshake is the state machine of a child's standard output (pt-spec 3.3).
// Its lines come from one goroutine; stage may be read from any.
type handshake struct {
	offered    []string // protocol versions
	keyword    string   // CMETHOD or SMETHOD
	transports []string // that were asked for
	proxy      bool     // whether an upstream proxy was set
	emit       func(Event)
	stage      atomic.Value // Stage: what is awaited

	proxyDone bool
	finished  bool
	found     map[string]method
	result    chan handshakeResult // gets exactly one, when finished
}

type handshakeResult struct {
	methods map[string]method // for every transport asked for
	err     *StartError
}

func newHandshake(keyword string, transports []string, proxy bool, emit func(Event)) *handshake {
	h := &handshake{
		offered:    versions,
		keyword:    keyword,
		transports: transports,
		proxy:      proxy,
		emit:       emit,
		found:      make(map[string]method),
		result:     make(chan handshakeResult, 1),
	}
	h.stage.Store(StageVersion)
	return h
}

func (h *handshake) finish(r handshakeResult) {
	if !h.finished {
		h.finished = true
		h.result <- r
	}
}

func (h *handshake) fail(stage Stage, err error, message string) {
	h.finish(handshakeResult{err: &StartError{Stage: stage, Err: err, Message: shortened(message)}})
}

// shortened is a child's message as it stands in an error.
func shortened(message string) string { return printable(message[:min(len(message), shown)]) }

// eof is the end of the output.
func (h *handshake) eof() { h.fail(h.stage.Load().(Stage), ErrOutputClosed, "") }

// line takes one line, without its newline.
func (h *handshake) line(text string) {
	keyword, rest, _ := strings.Cut(text, " ")
	known := true
	switch {
	case keyword == "LOG":
		known = h.event(parseLog(rest))
	case keyword == "STATUS":
		known = h.event(parseStatus(rest))
	case h.finished:
		known = false // all else belongs before DONE
	default:
		known = h.step(keyword, rest)
	}
	if !known {
		// pt-spec 3.3: unknown keywords are ignored.
		h.emit(Event{Kind: EventUnknown, Message: printable(text)})
	}
}

func (h *handshake) event(e Event, err error) bool {
	if err != nil {
		return false
	}
	h.emit(e)
	return true
}

// step takes one line of the handshake proper and says whether it means
// anything.
func (h *handshake) step(keyword, rest string) bool {
	switch keyword {
	case "VERSION": // 3.3.1
		return h.version(rest)
	case "VERSION-ERROR": // 3.3.1
		h.fail(StageVersion, ErrVersion, rest)
	case "ENV-ERROR": // 3.3.1
		h.fail(StageEnvironment, ErrEnvironment, rest)
	case "PROXY": // 3.3.2
		if rest != "DONE" || !h.proxy {
			return false
		}
		h.proxyDone = true
		h.stage.CompareAndSwap(StageProxy, StageMethods)
	case "PROXY-ERROR": // 3.3.2
		h.fail(StageProxy, ErrProxy, rest)
	case h.keyword, h.keyword + "-ERROR", h.keyword + "S":
		if h.stage.Load() == StageVersion {
			h.fail(StageVersion, fmt.Errorf("%w: %s before VERSION", ErrProtocol, keyword), "")
			return true
		}
		return h.method(keyword, rest)
	default:
		return false
	}
	return true
}

func (h *handshake) version(rest string) bool {
	if h.stage.Load() != StageVersion {
		return false
	}
	if !slices.Contains(h.offered, rest) {
		h.fail(StageVersion, ErrVersion, rest)
		return true
	}
	if h.proxy && !h.proxyDone {
		h.stage.Store(StageProxy)
	} else {
		h.stage.Store(StageMethods)
	}
	return true
}

// method takes CMETHOD and its kin (3.3.2), or SMETHOD and its kin (3.3.3).
func (h *handshake) method(keyword, rest string) bool {
	var name string
	var m method
	switch keyword {
	case h.keyword + "S":
		if rest != "DONE" {
			return false
		}
		h.done()
		return true
	case "CMETHOD":
		name, m.client, m.err = parseCMethod(rest)
	case "SMETHOD":
		name, m.server, m.err = parseSMethod(rest)
	default: // CMETHOD-ERROR, SMETHOD-ERROR: transport, then words
		var words string
		name, words, _ = strings.Cut(rest, " ")
		m.err = &MethodError{Transport: name, Message: shortened(words), Err: ErrRefused}
	}
	if _, twice := h.found[name]; twice || !slices.Contains(h.transports, name) {
		return false
	}
	if m.err != nil {
		if _, ok := errors.AsType[*MethodError](m.err); !ok {
			m.err = &MethodError{Transport: name, Err: m.err}
		}
	}
	h.found[name] = m
	return true
}

func (h *handshake) done() {
	if h.proxy && !h.proxyDone {
		// Fail closed: a child that does not know TOR_PT_PROXY dials directly.
		h.fail(StageProxy, ErrProxyUnconfirmed, "")
		return
	}
	failures, failed := ErrNoMethods, 0
	for _, name := range h.transports {
		m, ok := h.found[name]
		if !ok {
			m.err = &MethodError{Transport: name, Err: ErrNotAnnounced}
			h.found[name] = m
		}
		if m.err != nil {
			failures = fmt.Errorf("%w; %w", failures, m.err)
			failed++
		}
	}
	if failed == len(h.transports) {
		h.fail(StageMethods, failures, "")
		return
	}
	h.finish(handshakeResult{methods: h.found})
}
