package gateway

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"ptgate/adapter/durable"
	"ptgate/gateway/session"
)

// boxKeyFile has the private key of this box, in the state directory. With it the box
// shows to gateways that it is the same as before: by whatever transport they come, and
// also after a restart.
const boxKeyFile = "box.key"

// BoxOf tells who the box is whose state is in a directory. It makes the key if there is none.
func BoxOf(stateDir string) (session.Box, error) {
	key, err := boxKey(stateDir)
	if err != nil {
		return session.Box{}, err
	}
	return session.Box(key.Public().(ed25519.PublicKey)), nil
}

// boxKey reads the key of this box, or makes it.
func boxKey(dir string) (ed25519.PrivateKey, error) {
	name := filepath.Join(dir, boxKeyFile)
	text, err := durable.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		err = durable.WriteNew(name, []byte(hex.EncodeToString(key.Seed())+"\n"), 0o600)
		if _, there := os.Stat(name); errors.Is(err, fs.ErrExist) && there == nil { // a link to nowhere is not
			return boxKey(dir) // another process was faster
		}
		if err != nil {
			return nil, fmt.Errorf("the key of this box: %w", err)
		}
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the key of this box: %w", err)
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s has no key of a box: restore it from a copy, or remove it (gateways then see another box)", name)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}
