package builtin

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/ntor"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"

	"ptgate/adapter"
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
}

// obfs4Sets are those of a Listener.
type obfs4Sets struct {
	newest  *obfs4Set
	old     []*obfs4Set
	lengths lengths // of all connections
}

var obfs4Secret = secretKind{
	configured: configuredObfs4,
	renew:      renewObfs4,
	args:       obfs4Args,
	take:       (*Listener).takeObfs4,
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
	text, err := os.ReadFile(filepath.Join(stateDir, obfs4State))
	if err != nil {
		return nil, err
	}
	if err := checkObfs4State(text); err != nil {
		return nil, err
	}
	var s obfs4StateFile
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	return s.secret(), nil
}

// secret has the mode, too: the file has it if no option has.
func (s *obfs4StateFile) secret() adapter.Args {
	return adapter.Args{{Key: "node-id", Value: s.NodeID}, {Key: "private-key", Value: s.PrivateKey}, {Key: "drbg-seed", Value: s.DRBGSeed},
		{Key: "iat-mode", Value: strconv.Itoa(s.IATMode)}}
}

func renewObfs4(old adapter.Args, apart bool) (adapter.Args, error) {
	fresh, _, err := pairObfs4("")
	if err != nil {
		return nil, err
	}
	secret := make(adapter.Args, 0, len(old))
	for _, a := range old {
		value, _ := fresh.Get(a.Key)
		if a.Key == "iat-mode" || a.Key == "drbg-seed" && !apart {
			value = a.Value
		}
		secret.Add(a.Key, value)
	}
	return secret, nil
}

// obfs4Options are the server's options with a secret. The mode of the options counts.
func obfs4Options(options, secret adapter.Args) adapter.Args {
	out := replaced(options, secret)
	if mode, ok := options.Get("iat-mode"); ok {
		out = replaced(out, adapter.Args{{Key: "iat-mode", Value: mode}})
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
	set := func(options, secret adapter.Args) (*obfs4Set, error) {
		s := &obfs4Set{secret: digestOf(secret)}
		if was := known[s.secret]; was != nil {
			s.factory, s.mark = was.factory, was.mark
			return s, nil
		}
		if s.factory, err = obfs4Server(l.cfg.StateDir, toPT(options), l.log); err != nil {
			return nil, err
		}
		if secret == nil { // it is made now
			if secret, err = configuredObfs4(l.cfg.StateDir, options); err != nil {
				return nil, err
			}
			s.secret = digestOf(secret)
		}
		id, public, err := obfs4Public(secret)
		s.mark = append(public, id...)
		return s, err
	}
	sets := new(obfs4Sets)
	now := time.Now()
	for _, o := range r.Old {
		if !o.good(now) || digestOf(o.Secret) == digestOf(r.New) {
			continue
		}
		s, err := set(obfs4Options(l.cfg.Options, o.Secret), o.Secret)
		if err != nil {
			return err
		}
		s.until = o.Until
		sets.old = append(sets.old, s)
	}
	// The newest is the last: the bridge line in the state directory is to be its own.
	options, secret := l.cfg.Options, r.New
	if r.Of != "" {
		options = obfs4Options(options, secret)
	} else {
		secret, _ = configuredObfs4(l.cfg.StateDir, options) // none: they are made now
	}
	if sets.newest, err = set(options, secret); err != nil {
		return err
	}
	l.sets.Store(sets)
	l.setArgs(fromPT(*sets.newest.factory.Args()))
	return nil
}

// accept does the handshake with the set that the client means.
func (k *obfs4Sets) accept(c *link) (net.Conn, netip.AddrPort, error) {
	c.lengths = &k.lengths
	begun := time.Now()
	s := &sorter{link: c, sets: []*obfs4Set{k.newest}}
	for _, old := range k.old {
		if begun.Before(old.until) {
			s.sets = append(s.sets, old)
		}
	}
	if len(s.sets) == 1 {
		return acceptObfs4(k.newest.factory, c, c)
	}
	inner, from, err := acceptObfs4(k.newest.factory, s, c)
	if s.meant != nil {
		return acceptObfs4(s.meant.factory, &again{link: c, first: s.got[:s.before], last: s.got[s.before:], late: time.Since(begun)}, c)
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
	got    []byte
	before int    // how much of got was there before the last read
	marks  []byte // of the sets, one after the other; nil: there was too little to make them from
	meant  *obfs4Set
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
	case found > 0:
		s.meant, s.sets = s.sets[found], nil
		return 0, errOldKeys
	case found == 0:
		// The answer to a client of an old set takes longer: that set makes the keys of its
		// handshake only now. So that nobody sees two kinds of clients, the newest set makes
		// such keys once more, for nothing.
		_, _ = s.sets[0].factory.WrapConn(nobody{s.link})
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

// SetReadDeadline counts from the beginning of the handshake while it is under way.
func (a *again) SetReadDeadline(t time.Time) error {
	if a.guest != nil {
		t = t.Add(-a.late)
	}
	return a.link.SetReadDeadline(t)
}
