package bridges

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"

	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/session"
)

// boxesFile has the boxes to which bridges have led, in the state directory.
const boxesFile = "boxes.json"

// boxes remembers which box each bridge leads to, over restarts. The file names no bridge:
// only those who know a bridge can find it there.
type boxes struct {
	log  *slog.Logger
	file sync.Mutex // held while the file is written; taken before mu

	mu    sync.Mutex
	dir   string            // where the file is; "": nowhere
	known map[string]string // the bridge's mark → the box, in hex
}

// mark stands for a bridge in the file. The identity has all that leads to a box.
func mark(identity string) string {
	sum := sha256.Sum256([]byte("ptgate bridge\x00" + identity))
	return hex.EncodeToString(sum[:16])
}

// markOf is the mark of a bridge of a configuration.
func markOf(c *config.Bridge) string {
	return mark(c.Transport + "\x00" + c.Address + "\x00" + argsOf(c))
}

// KnownBox is the box to which a bridge has led, in short, as it is noted in the state
// directory of the configuration; "": it is not known.
func KnownBox(cfg *config.Config, c *config.Bridge) string {
	b := boxes{log: slog.New(slog.DiscardHandler)}
	b.load(cfg.StateDir)
	return b.get(markOf(c)).String()
}

// load reads the file of a state directory, once. A file that can't be read is as good as
// none: all that is lost is the memory of who the boxes were.
func (b *boxes) load(dir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == dir {
		return
	}
	b.dir, b.known = dir, map[string]string{}
	text, err := durable.ReadFile(filepath.Join(dir, boxesFile))
	if err != nil {
		return
	}
	if err := json.Unmarshal(text, &b.known); err != nil || b.known == nil {
		b.known = map[string]string{}
		b.log.Warn("the file of known boxes can't be read: each box counts as new", "file", boxesFile)
	}
}

// get returns the box of a bridge; zero: it is not known.
func (b *boxes) get(mark string) (box session.Box) {
	b.mu.Lock()
	defer b.mu.Unlock()
	raw, err := hex.DecodeString(b.known[mark])
	if err == nil && len(raw) == len(box) {
		copy(box[:], raw)
	}
	return box
}

// set notes the box of a bridge, and returns the one before.
func (b *boxes) set(mark string, box session.Box) (before session.Box) {
	before = b.get(mark)
	if before == box {
		return before
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known := maps.Clone(b.known)
	if known == nil {
		known = map[string]string{}
	}
	known[mark] = hex.EncodeToString(box[:])
	b.known = known
	return before
}

// write writes the file. It takes as long as the disk does.
func (b *boxes) write() {
	b.file.Lock()
	defer b.file.Unlock()
	b.mu.Lock()
	dir, known := b.dir, b.known // which is never changed
	b.mu.Unlock()
	if dir == "" {
		return
	}
	if err := writeJSON(filepath.Join(dir, boxesFile), known); err != nil {
		b.log.Warn("the file of known boxes can't be written", "file", boxesFile, "error", err)
	}
}

// NoteBox notes, in the state directory of the configuration, which box a bridge leads to.
func NoteBox(cfg *config.Config, c *config.Bridge, box session.Box) {
	b := boxes{log: slog.New(slog.DiscardHandler)}
	b.load(cfg.StateDir)
	if b.set(markOf(c), box) != box {
		b.write()
	}
}

// writeJSON writes a file that only its owner reads.
func writeJSON(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(name, append(text, '\n'), 0o600)
}
