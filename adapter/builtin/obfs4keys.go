package builtin

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/drbg"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/ntor"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"

	"ptgate/adapter"
	"ptgate/adapter/durable"
)

// Several sets of keys on one port of obfs4.
//
// A client's handshake has a mark, which follows from the keys of the server that it is for
// (obfs4-spec section 4). So the server finds out which set is meant. Nobody else may see
// that there are several. So all that has no mark of an earlier set is the business of the
// newest one: the transport's own code reads it, by its own clock, as if there were no other
// set. And all sets share a seed (drbg-seed). From it follow the time after which a client
// that failed is closed, and the lengths of packets.

// An obfs4Set is one set of keys.
type obfs4Set struct {
	secret  string
	factory base.ServerFactory
	mark    []byte    // the key of marks: public key, node ID
	until   time.Time // of an old set
	lengths *lengths  // of its connections
}

// obfs4Sets are those of a Listener. Old sets that have ended are among them: their clients
// are told from strangers, for the log only.
type obfs4Sets struct {
	newest *obfs4Set
	old    []*obfs4Set
}

var obfs4Secret = secretKind{
	configured: configuredObfs4,
	renew:      renewObfs4,
	args:       obfs4Args,
	take:       (*Listener).takeObfs4,
}

func hasObfs4Keys(options adapter.Args) bool {
	return slices.ContainsFunc(options, func(a adapter.Arg) bool { return slices.Contains(obfs4Keys, a.Key) })
}

func configuredObfs4(stateDir string, options adapter.Args) (secret adapter.Args, err error) {
	for _, key := range obfs4Keys {
		if value, ok := options.Get(key); ok {
			secret.Add(key, value)
		}
	}
	if len(secret) > 0 {
		return secret, nil
	}
	s, err := readObfs4State(stateDir)
	if err != nil {
		return nil, err
	}
	return s.secret(), nil
}

func readObfs4State(stateDir string) (s obfs4StateFile, err error) {
	text, err := durable.ReadFile(filepath.Join(stateDir, obfs4State))
	if err != nil {
		return s, err
	}
	if err := checkObfs4State(text); err != nil {
		return s, fmt.Errorf("%s: %w", filepath.Join(stateDir, obfs4State), err)
	}
	return s, json.Unmarshal(text, &s)
}

func (s *obfs4StateFile) secret() adapter.Args {
	return adapter.Args{{Key: "node-id", Value: s.NodeID}, {Key: "private-key", Value: s.PrivateKey}, {Key: "drbg-seed", Value: s.DRBGSeed}}
}

func renewObfs4(old adapter.Args, apart bool) (adapter.Args, error) {
	fresh, _, err := pairObfs4("")
	if err != nil {
		return nil, err
	}
	secret := make(adapter.Args, 0, len(old))
	for _, a := range old {
		value, _ := fresh.Get(a.Key)
		if a.Key == "drbg-seed" && !apart {
			value = a.Value
		}
		secret.Add(a.Key, value)
	}
	return secret, nil
}

// obfs4Options are the server's options with a secret. The mode is no secret: as without a
// rotation, it is that of the options or, if they have no keys, of the state file.
func obfs4Options(stateDir string, options, secret adapter.Args) adapter.Args {
	out := replaced(options, secret)
	if _, ok := options.Get("iat-mode"); ok || hasObfs4Keys(options) {
		return out
	}
	if s, err := readObfs4State(stateDir); err == nil {
		out.Add("iat-mode", strconv.Itoa(s.IATMode))
	}
	return out
}

func obfs4Args(args, secret adapter.Args) (adapter.Args, error) {
	id, public, err := obfs4Public(secret)
	if err != nil {
		return nil, err
	}
	return replaced(args, adapter.Args{{Key: "cert", Value: base64.RawStdEncoding.EncodeToString(append(id, public...))}}), nil
}

// obfs4Public gives what clients know of a secret.
func obfs4Public(secret adapter.Args) (id, public []byte, err error) {
	text, _ := secret.Get("node-id")
	node, err := ntor.NodeIDFromHex(text)
	if err != nil {
		return nil, nil, adapter.Constant("node-id is not whole")
	}
	text, _ = secret.Get("private-key")
	key, err := ntor.KeypairFromHex(text)
	if err != nil {
		return nil, nil, adapter.Constant("private-key is not whole")
	}
	text, _ = secret.Get("drbg-seed")
	if _, err := drbg.SeedFromHex(text); err != nil {
		return nil, nil, adapter.Constant("drbg-seed is not whole")
	}
	return node.Bytes()[:], key.Public().Bytes()[:], nil
}

// takeObfs4 makes the sets of a rotation the ones of l. A set that l has already stays: it
// knows which handshakes it has seen.
func (l *Listener) takeObfs4(r rotation) (err error) {
	defer rescue(nameObfs4, &err)
	known := map[string]*obfs4Set{}
	if was := l.sets.Load(); was != nil {
		for _, s := range append(was.old, was.newest) {
			known[s.secret] = s
		}
	}
	sets := new(obfs4Sets)
	for _, o := range r.Old {
		s := known[digestOf(o.Secret)]
		if s == nil {
			factory, err := oldObfs4(l.cfg.StateDir, obfs4Options(l.cfg.StateDir, l.cfg.Options, o.Secret))
			if err != nil {
				return err
			}
			if s, err = newObfs4Set(factory, o.Secret); err != nil {
				return err
			}
		}
		old := *s
		old.until = o.Until
		sets.old = append(sets.old, &old)
	}
	options, secret := l.cfg.Options, r.New
	if r.Of != "" {
		options = obfs4Options(l.cfg.StateDir, options, secret)
	} else {
		secret, _ = configuredObfs4(l.cfg.StateDir, options) // none: they are made now
	}
	if sets.newest = known[digestOf(secret)]; sets.newest == nil {
		factory, err := obfs4Server(l.cfg.StateDir, toPT(options), l.log)
		if err != nil {
			return err
		}
		if secret == nil {
			if secret, err = configuredObfs4(l.cfg.StateDir, options); err != nil {
				return err
			}
		}
		if sets.newest, err = newObfs4Set(factory, secret); err != nil {
			return err
		}
	}
	l.sets.Store(sets)
	l.setArgs(fromPT(*sets.newest.factory.Args()))
	return nil
}

func newObfs4Set(factory base.ServerFactory, secret adapter.Args) (*obfs4Set, error) {
	id, public, err := obfs4Public(secret)
	return &obfs4Set{secret: digestOf(secret), factory: factory, mark: append(public, id...), lengths: new(lengths)}, err
}

// oldObfs4 makes a server of an old set. The bridge line in the state directory stays that of
// the newest one.
func oldObfs4(stateDir string, options adapter.Args) (factory base.ServerFactory, err error) {
	for _, dir := range []string{stateDir, ""} { // a full disk is no reason to stop
		if factory, _, err = tryObfs4(dir, nil, toPT(options)); err == nil {
			break
		}
	}
	return factory, err
}

// accept does the handshake with the set that the client means.
func (k *obfs4Sets) accept(c *link) (net.Conn, netip.AddrPort, error) {
	c.lengths = k.newest.lengths
	if len(k.old) == 0 {
		return acceptObfs4(k.newest.factory, c, c)
	}
	begun := time.Now()
	s := &sorter{link: c, sets: append([]*obfs4Set{k.newest}, k.old...), begun: begun}
	inner, from, err := acceptObfs4(k.newest.factory, s, c)
	if s.meant != nil {
		c.lengths = s.meant.lengths
		return acceptObfs4(s.meant.factory, &again{link: c, first: s.got[:s.before], last: s.got[s.before:], late: time.Since(begun)}, c)
	}
	if s.ended && err != nil {
		err = errEnded
	}
	s.stop()
	return inner, from, err
}

// A sorter is a link that the newest set reads from. It looks for the marks of all sets. When
// it has found one of an old set, the newest set gets an error, and has no more to do with
// the client.
type sorter struct {
	*link
	sets   []*obfs4Set // the newest first; nil: there is nothing to look for any more
	begun  time.Time
	got    []byte
	before int    // how much of got was there before the last read
	marks  []byte // of the sets, one after the other; nil: there was too little to make them from
	meant  *obfs4Set
	ended  bool // the client means a set that has ended: to the newest one it is a stranger
}

const (
	obfs4Representative = ntor.RepresentativeLength
	obfs4Mark           = 16 // and as long is the MAC behind the mark
)

var errOldKeys = adapter.Constant("the client has earlier keys")

func (s *sorter) stop() { s.sets, s.got, s.marks = nil, nil, nil }

func (s *sorter) Read(p []byte) (int, error) {
	n, err := s.link.Read(p)
	if s.sets == nil || err != nil {
		return n, err
	}
	s.before = len(s.got)
	s.got = append(s.got, p[:n]...)
	if len(s.got) < obfs4Representative+2*obfs4Mark {
		return n, nil
	}
	if s.marks == nil {
		for _, set := range s.sets {
			mac := hmac.New(sha256.New, set.mark)
			mac.Write(s.got[:obfs4Representative])
			s.marks = append(s.marks, mac.Sum(nil)[:obfs4Mark]...)
		}
	}
	// As the transport itself: the mark and the MAC are the end of what has come.
	end := min(len(s.got), obfs4Longest)
	at := s.got[end-2*obfs4Mark : end-obfs4Mark]
	found := -1
	for i := range s.sets {
		if hmac.Equal(at, s.marks[i*obfs4Mark:(i+1)*obfs4Mark]) {
			found = i
		}
	}
	switch {
	case found > 0 && !s.begun.Before(s.sets[found].until):
		s.ended = true
		s.stop()
	case found > 0:
		s.meant, s.sets = s.sets[found], nil
		return 0, errOldKeys
	case found == 0 && slices.ContainsFunc(s.sets[1:], func(old *obfs4Set) bool { return s.begun.Before(old.until) }):
		// The answer to a client of an old set takes longer: that set makes the keys of its
		// handshake only now. So that nobody sees two kinds of clients, the newest set makes
		// such keys once more, for nothing.
		_, _ = s.sets[0].factory.WrapConn(nobody{s.link})
		s.stop()
	case found == 0:
		s.stop()
	case len(s.got) >= obfs4Longest:
		s.stop() // no set takes it any more
	}
	return n, nil
}

// A nobody is a connection from which nothing comes.
type nobody struct{ net.Conn }

func (nobody) Read([]byte) (int, error)        { return 0, errOldKeys }
func (nobody) SetDeadline(time.Time) error     { return nil }
func (nobody) SetReadDeadline(time.Time) error { return errOldKeys }
func (nobody) Close() error                    { return nil }

// SetReadDeadline and Close are what the newest set does when the handshake has failed.
func (s *sorter) SetReadDeadline(t time.Time) error {
	if s.meant != nil {
		return errOldKeys
	}
	return s.link.SetReadDeadline(t)
}

func (s *sorter) Close() error {
	if s.meant != nil {
		return nil
	}
	return s.link.Close()
}

// An again is a link from which bytes were read. An old set reads them as they have come:
// the last read alone, as it may have more than a handshake.
type again struct {
	*link
	first, last []byte
	late        time.Duration // since the handshake has begun
}

func (a *again) Read(p []byte) (int, error) {
	for _, b := range []*[]byte{&a.first, &a.last} {
		if len(*b) > 0 {
			n := copy(p, *b)
			if *b = (*b)[n:]; len(*b) == 0 {
				*b = nil
			}
			return n, nil
		}
	}
	return a.link.Read(p)
}

// SetDeadline and SetReadDeadline count from the beginning of the handshake while it is under
// way: the limits of a client are those that it has with one set of keys.
func (a *again) SetDeadline(t time.Time) error { return a.link.SetDeadline(a.early(t)) }

func (a *again) SetReadDeadline(t time.Time) error { return a.link.SetReadDeadline(a.early(t)) }

func (a *again) early(t time.Time) time.Time {
	if a.guest != nil && !t.IsZero() {
		t = t.Add(-a.late)
	}
	return t
}
