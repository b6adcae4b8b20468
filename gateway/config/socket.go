package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"
)

// maxSocketPath is how long the path of a Unix socket may be. The systems' limit is 103
// bytes or more, and a socket is made under a longer name than it has in the end.
const maxSocketPath = 90

// socketPath checks the path of a Unix socket.
func socketPath(s string) (string, error) {
	switch {
	case runtime.GOOS == "windows":
		return "", errors.New("is for systems of the Unix kind: write an address, as in \"127.0.0.1:1080\"")
	case !filepath.IsAbs(s):
		return "", errors.New("has no absolute path: write as in \"unix:/run/ptgate/proxy.sock\"")
	}
	path := filepath.Clean(s)
	switch {
	case len(path) > maxSocketPath:
		return "", fmt.Errorf("has a path of %d bytes: %d are the most", len(path), maxSocketPath)
	case path == "/" || s[len(s)-1] == '/':
		return "", errors.New("is a directory: write the name of the socket, too")
	}
	return path, nil
}

// mode reads the mode of a file, such as "0660".
func (t *table) mode(key string, def fs.FileMode) fs.FileMode {
	s := t.str(key, "")
	if s == "" {
		return def
	}
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 || n&0o600 != 0o600 {
		t.fail(t.lineOf(key), "%s is %q: write three digits from 0 to 7, the first a 6 or 7, as in \"660\" for the group of the file", key, s)
		return def
	}
	return fs.FileMode(n)
}
