package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Find returns the path of the configuration file. It is explicit, if that is not
// empty, or $PTGATE_CONFIG, if that is set. These files need not exist: Load gives
// a better error. Otherwise it is the first existing file of ./ptgate.toml,
// ptgate/ptgate.toml in the user's configuration directory, and
// /etc/ptgate/ptgate.toml. If none exists, the error wraps fs.ErrNotExist.
func Find(explicit string) (string, error) {
	if explicit != "" {
		return explicit, nil
	}
	if path := os.Getenv("PTGATE_CONFIG"); path != "" {
		return path, nil
	}
	places := []string{"ptgate.toml"}
	if dir, err := os.UserConfigDir(); err == nil {
		places = append(places, filepath.Join(dir, "ptgate", "ptgate.toml"))
	}
	places = append(places, "/etc/ptgate/ptgate.toml")
	for _, path := range places {
		// Also a file that this user may not look at: Load says so.
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no configuration file: %w: give one with -c FILE or $PTGATE_CONFIG, or make one: "+
		"`ptgate up` on a server, `ptgate join` with an invitation, `ptgate pair` for both ends; looked for %s",
		fs.ErrNotExist, strings.Join(places, ", "))
}
