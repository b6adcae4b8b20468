package builtin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/drbg"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/ntor"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/obfs4"

	"ptgate/adapter"
	"ptgate/adapter/durable"
)

// The files in the state directory of an obfs4 server, as all programs that speak
// obfs4 name them: its keys, and a bridge line for people to read.
const (
	obfs4State      = "obfs4_state.json"
	obfs4BridgeLine = "obfs4_bridgeline.txt"
)

// obfs4Server makes obfs4's server from the keys in stateDir, or from those that
// options give. Where there are none, it makes keys and keeps them.
//
// The transport writes its files itself, at each start, over the old ones: a full
// disk would cost the keys. So it gets a directory for the moment, with a copy. From
// there the keys come back once, when they are new, and durably; a file that is
// there is never written again, and keys that options give are theirs to keep.
func obfs4Server(stateDir string, options pt.Args, log *slog.Logger) (base.ServerFactory, error) {
	given := slices.ContainsFunc(obfs4Keys, func(key string) bool {
		_, ok := options.Get(key)
		return ok
	})
	path := filepath.Join(stateDir, obfs4State)
	kept, err := durable.ReadFile(path)
	switch {
	case given:
		kept = nil
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("the server's keys can't be read: %w", err)
	default:
		if err := checkObfs4State(kept); err != nil {
			return nil, fmt.Errorf("the server's keys in %s are damaged (%w): put a copy of the file in its place; "+
				"if there is none, remove the file: then new keys are made, and all clients need the new bridge line", path, err)
		}
	}

	fresh := !given && kept == nil
	factory, made, err := tryObfs4(stateDir, kept, options)
	_, ofFiles := errors.AsType[*fs.PathError](err)
	if ofFiles && fresh {
		return nil, fmt.Errorf("the server's new keys can't be kept: %w", err)
	}
	if ofFiles {
		// The state directory is full, or can't be written. That is no reason to
		// stop: nothing new has to be kept.
		factory, made, err = tryObfs4("", kept, options)
	}
	if err != nil {
		return nil, err
	}
	if fresh {
		err := durable.WriteNew(path, made[obfs4State], 0o600)
		_, there := os.Stat(path) // a link to nowhere is not
		switch {
		case errors.Is(err, fs.ErrExist) && there == nil:
			return obfs4Server(stateDir, options, log) // another process was faster: its keys count
		case err != nil:
			return nil, fmt.Errorf("the server's new keys can't be kept: %w", err)
		}
	}
	line := filepath.Join(stateDir, obfs4BridgeLine)
	if old, err := durable.ReadFile(line); err != nil || !bytes.Equal(old, made[obfs4BridgeLine]) {
		if err := durable.WriteFile(line, made[obfs4BridgeLine], 0o600); err != nil {
			log.Warn("the bridge line can't be written", "error", err)
		}
	}
	return factory, nil
}

// tryObfs4 starts obfs4 with the keys in a new directory below parent, which is gone
// afterwards; "" stands for the system's place for such. It returns the files that
// obfs4 has made there.
func tryObfs4(parent string, keys []byte, options pt.Args) (factory base.ServerFactory, made map[string][]byte, err error) {
	dir, err := os.MkdirTemp(parent, ".obfs4-*")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	if keys != nil {
		if err := os.WriteFile(filepath.Join(dir, obfs4State), keys, 0o600); err != nil {
			return nil, nil, err
		}
	}
	if factory, err = new(obfs4.Transport).ServerFactory(dir, &options); err != nil {
		return nil, nil, err
	}
	made = make(map[string][]byte)
	for _, name := range []string{obfs4State, obfs4BridgeLine} {
		if made[name], err = durable.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, nil, err
		}
	}
	return factory, made, nil
}

// An obfs4StateFile is what the state file holds of the server's keys.
type obfs4StateFile struct {
	NodeID     string `json:"node-id"`
	PrivateKey string `json:"private-key"`
	DRBGSeed   string `json:"drbg-seed"`
	IATMode    int    `json:"iat-mode"`
}

// checkObfs4State tells what is wrong with a state file. It quotes nothing of it.
func checkObfs4State(text []byte) error {
	var keys obfs4StateFile
	if len(text) == 0 {
		return adapter.Constant("the file is empty")
	}
	if json.Unmarshal(text, &keys) != nil {
		return adapter.Constant("the file is no valid JSON")
	}
	if _, err := ntor.NodeIDFromHex(keys.NodeID); err != nil {
		return adapter.Constant("node-id is missing, or not whole")
	}
	if _, err := ntor.KeypairFromHex(keys.PrivateKey); err != nil {
		return adapter.Constant("private-key is missing, or not whole")
	}
	if _, err := drbg.SeedFromHex(keys.DRBGSeed); err != nil {
		return adapter.Constant("drbg-seed is missing, or not whole")
	}
	return nil
}
