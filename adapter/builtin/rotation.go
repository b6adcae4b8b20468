package builtin

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/durable"
)

// A secret is what the clients of a server have to know: the keys of obfs4, the path of
// webtunnel. It is in the server's options, or in its state directory.
//
// A rotation gives a server a new secret. Earlier ones stay good until a date, on the same
// port: nobody has to hand out all the new bridge lines in one moment.

// A secretKind has what rotations need to know of a transport.
type secretKind struct {
	// configured returns the secret that the options or the state directory have.
	configured func(stateDir string, options adapter.Args) (adapter.Args, error)
	// renew makes a new secret. apart says that no earlier one stays good.
	renew func(old adapter.Args, apart bool) (adapter.Args, error)
	// args are those of the clients, with another secret.
	args func(args, secret adapter.Args) (adapter.Args, error)
	// take makes the secrets of a rotation those of a Listener. With the zero rotation it
	// has the configured secret.
	take func(*Listener, rotation) error
}

// A rotation is the file that says which secret follows the one that was configured. It is
// in the state directory. If the configured secret changes, the file has no meaning.
type rotation struct {
	Of  string       `json:"of"` // a hash of the configured secret; "": there was no rotation
	New adapter.Args `json:"new"`
	Old []oldSecret  `json:"old"` // the oldest first
}

// An oldSecret stays in the file when it has ended, so that the log tells its clients from
// strangers. Then it does not begin again if the clock goes back: Until is zero from the next
// rotation on.
type oldSecret struct {
	Secret adapter.Args `json:"secret"`
	Until  time.Time    `json:"until"`
}

func (o *oldSecret) good(now time.Time) bool { return now.Before(o.Until) }

// mostOld is how many earlier secrets there may be. Each one is tried with each client.
const mostOld = 16

var (
	// ErrNoRotation says that there is nothing that a rotation could change.
	ErrNoRotation = adapter.Constant("this transport has no keys that can be rotated here")
	errManyOld    = adapter.Constant("too many earlier keys are still good: end them first")
)

// Rotates tells whether the server of the transport can have a new secret beside old ones.
func (t *Transport) Rotates() bool { return t.secret != nil }

func rotationPath(transport, stateDir string) string {
	return filepath.Join(stateDir, transport+"_rotation.json")
}

// readRotation reads the file.
func (t *Transport) readRotation(stateDir string, options adapter.Args) (r rotation, err error) {
	if stateDir == "" {
		return r, nil
	}
	path := rotationPath(t.Name, stateDir)
	text, err := durable.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("the keys of the last rotation can't be read: %w", err)
	}
	if json.Unmarshal(text, &r) != nil || !t.whole(&r) {
		return rotation{}, fmt.Errorf("%s is damaged: put a copy of the file in its place; "+
			"if there is none, remove the file: then the keys before the first rotation are good again, and clients need that bridge line", path)
	}
	if secret, err := t.secret.configured(stateDir, options); err != nil || r.Of != digestOf(secret) {
		return rotation{}, nil // what is wrong with the secret is told by who needs it
	}
	return r, nil
}

func (t *Transport) whole(r *rotation) bool {
	bad := func(secret adapter.Args) bool {
		_, err := t.secret.args(nil, secret)
		return err != nil
	}
	return r.Of != "" && !bad(r.New) && !slices.ContainsFunc(r.Old, func(o oldSecret) bool { return bad(o.Secret) })
}

// CheckKeys tells what is wrong with the files of a server's secrets, if there are any.
func CheckKeys(transport, stateDir string, options adapter.Args) error {
	t, _ := Lookup(transport)
	if t.secret == nil {
		return nil
	}
	if _, err := t.secret.configured(stateDir, options); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err := t.readRotation(stateDir, options)
	return err
}

func digestOf(secret adapter.Args) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", secret))
	return hex.EncodeToString(sum[:16])
}

// Rotate makes a new secret for a server, which has run before, and writes it to the state
// directory. The present one, and the earlier ones that are good still, stay good beside it:
// until a time, or until the earlier time that was set before. If that time is not in the
// future, all of them end now. The file belongs to whom the state directory belongs.
//
// A Listener that runs takes the file with ReadKeys.
func Rotate(transport, stateDir string, options adapter.Args, until time.Time) error {
	t, _ := Lookup(transport)
	if t.secret == nil {
		return fmt.Errorf("%s: %w", transport, ErrNoRotation)
	}
	r, err := t.readRotation(stateDir, options)
	if err == nil && r.Of == "" {
		r.New, err = t.secret.configured(stateDir, options)
		r.Of = digestOf(r.New)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", transport, err)
	}
	now := time.Now()
	var old []oldSecret
	good := 0
	for _, o := range append(r.Old, oldSecret{r.New, until}) {
		if until.Before(o.Until) {
			o.Until = until
		}
		if o.good(now) {
			good++
		} else {
			o.Until = time.Time{}
		}
		old = append(old, o)
	}
	if good > mostOld {
		return fmt.Errorf("%s: %w", transport, errManyOld)
	}
	for i := 0; len(old) > mostOld; { // the log can do without more
		if old[i].good(now) {
			i++
		} else {
			old = slices.Delete(old, i, i+1)
		}
	}
	if r.New, err = t.renew(r.New, good == 0); err != nil {
		return fmt.Errorf("%s: %w", transport, err)
	}
	r.Old = old
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := durable.WriteOwned(rotationPath(transport, stateDir), text, 0o600); err != nil {
		return fmt.Errorf("%s: the new keys can't be kept: %w", transport, err)
	}
	return nil
}

func (t *Transport) renew(old adapter.Args, apart bool) (secret adapter.Args, err error) {
	defer rescue(t.Name, &err)
	return t.secret.renew(old, apart)
}

// Present returns the args that clients of a server need now, where args are those that it
// had at its start, and until when earlier ones are good, too. Zero: there are none.
func Present(transport, stateDir string, options, args adapter.Args) (now adapter.Args, old time.Time) {
	t, _ := Lookup(transport)
	if t.secret == nil {
		return args, old
	}
	r, err := t.readRotation(stateDir, options)
	if err != nil || r.Of == "" {
		return args, old
	}
	if now, err = t.secret.args(args, r.New); err != nil {
		return args, old
	}
	at := time.Now()
	for _, o := range r.Old {
		if o.good(at) && o.Until.After(old) {
			old = o.Until
		}
	}
	return now, old
}

// ReadKeys takes the secrets that Rotate has written since. After an error, nothing has
// changed. Open connections go on. A Listener does the same by itself when the next client
// comes.
func (l *Listener) ReadKeys() error {
	if l.row.secret == nil {
		return nil
	}
	l.reading.Lock()
	defer l.reading.Unlock()
	r, err := l.row.readRotation(l.cfg.StateDir, l.cfg.Options)
	if err != nil {
		return err
	}
	if err := l.row.secret.take(l, r); err != nil {
		return err
	}
	l.old = r.Old
	return nil
}

// look is ReadKeys if the file has changed. The rotation may be the work of another process,
// or have come while the Listener started.
func (l *Listener) look() {
	if l.row.secret == nil {
		return
	}
	info, err := os.Stat(rotationPath(l.row.Name, l.cfg.StateDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	l.looking.Lock()
	defer l.looking.Unlock()
	same := l.seen == nil && info == nil
	if l.seen != nil && info != nil {
		same = os.SameFile(l.seen, info) && l.seen.ModTime().Equal(info.ModTime())
	}
	if same {
		return
	}
	if err := l.ReadKeys(); err != nil { // the next client tries again: there may be no descriptor now
		l.unread.Log(l.log, slog.LevelWarn, "new keys are there, and can't be taken", "transport", l.cfg.Transport, "error", err)
		return
	}
	l.seen = info
}

// tellEnds says in the log when old secrets end, to the minute. It looks at the clock again
// and again: the clock may be set.
func (l *Listener) tellEnds() {
	for last := time.Now(); ; {
		select {
		case <-time.After(time.Minute):
		case <-l.ctx.Done():
			return
		}
		l.look() // perhaps no client has come since the rotation
		now := time.Now()
		l.tellEnd(last, now)
		last = now
	}
}

func (l *Listener) tellEnd(last, now time.Time) {
	l.reading.Lock()
	defer l.reading.Unlock()
	if slices.ContainsFunc(l.old, func(o oldSecret) bool { return o.good(last) && !o.good(now) }) {
		l.log.Info("old bridge lines have ended: clients need the present one of `ptgate bridges`", "transport", l.cfg.Transport)
	}
}

// errEnded says that a client has a secret that has ended.
var errEnded = adapter.Constant("the client's bridge line has ended")

// replaced is args with other values of some keys. Keys that are new come last.
func replaced(args, by adapter.Args) adapter.Args {
	out := slices.Clone(args)
	for _, b := range by {
		if i := slices.IndexFunc(out, func(a adapter.Arg) bool { return a.Key == b.Key }); i >= 0 {
			out[i].Value = b.Value
		} else {
			out = append(out, b)
		}
	}
	return out
}
