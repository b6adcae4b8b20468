package website

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"

	"ptgate/adapter"
)

// A PairError says what is wrong with a certificate or its key.
type PairError struct {
	Key bool // it is the key, not the certificate
	Err error
}

func (e *PairError) Error() string { return e.Err.Error() }
func (e *PairError) Unwrap() error { return e.Err }

// maxPEM bounds a file with a certificate or a key, in bytes.
const maxPEM = 1 << 20

func readPEM(name string) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir() || info.Size() > maxPEM:
		return nil, adapter.Constant("it is no file in PEM")
	}
	return os.ReadFile(name)
}

// ReadPair reads a certificate chain and its private key. The error is a *PairError. It has
// nothing of the files' content.
func ReadPair(certFile, keyFile string) (*tls.Certificate, error) {
	certPEM, err := readPEM(certFile)
	if err != nil {
		return nil, &PairError{false, err}
	}
	keyPEM, err := readPEM(keyFile)
	if err != nil {
		return nil, &PairError{true, err}
	}
	return pair(certPEM, keyPEM)
}

func pair(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	if err := checkChain(certPEM); err != nil {
		return nil, &PairError{false, err}
	}
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil {
		return &c, nil
	}
	switch {
	case strings.Contains(err.Error(), "does not match"):
		err = adapter.Constant("the key is not that of the certificate: name the two that belong together")
	case bytes.Contains(keyPEM, []byte("ENCRYPTED")):
		err = adapter.Constant("the private key has a password, which nobody can give at the start: `openssl pkey -in OLD -out NEW` takes it off")
	case !bytes.Contains(keyPEM, []byte("PRIVATE KEY-----")):
		err = adapter.Constant("there is no private key in PEM in it: one begins with -----BEGIN PRIVATE KEY-----")
	default:
		err = adapter.Constant("the private key is damaged, or not whole: copy it anew")
	}
	return nil, &PairError{true, err}
}

// checkChain says in our words what crypto/tls would not take.
func checkChain(certPEM []byte) error {
	n := 0
	for rest := certPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			switch {
			case bytes.Contains(rest, []byte("CERTIFICATE-----")):
				return errHalf
			case n == 0 && bytes.Contains(certPEM, []byte("PRIVATE KEY-----")):
				return adapter.Constant("there is a private key in it, and no certificate: give cert and key their own files; they may be the wrong way round")
			case n == 0:
				return adapter.Constant("there is no certificate in PEM in it: one begins with -----BEGIN CERTIFICATE-----")
			}
			return nil
		}
		if block.Type == "CERTIFICATE" {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return errHalf
			}
			n++
		}
	}
}

var errHalf = adapter.Constant("the certificate is damaged, or not whole: copy it anew")

// files is a certificate in two files.
type files struct {
	cert, key string
	log       *slog.Logger

	mu   sync.Mutex
	now  *tls.Certificate
	seen [2]fs.FileInfo // of the files, when they were last read
}

// infoOf is what a file is now; nil: it can't be seen.
func infoOf(name string) fs.FileInfo {
	info, err := os.Stat(name)
	if err != nil {
		return nil
	}
	return info
}

// isSame tells whether a file is what it was. One that was put in the place of another may
// have its size and its time.
func isSame(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

func openFiles(cert, key string, log *slog.Logger) (*files, error) {
	f := &files{cert: cert, key: key, log: log}
	f.seen = f.look()
	var err error
	if f.now, err = ReadPair(cert, key); err != nil {
		name := cert
		if e, ok := err.(*PairError); ok && e.Key {
			name = key
		}
		return nil, fmt.Errorf("tls: %s: %w", name, err)
	}
	return f, nil
}

func (f *files) look() [2]fs.FileInfo { return [2]fs.FileInfo{infoOf(f.cert), infoOf(f.key)} }

func (f *files) run(context.Context) {}

// get reads the files again if they have changed. Whoever replaces them writes one after
// the other: as long as they do not fit, the old certificate is shown.
func (f *files) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.look(); !isSame(now[0], f.seen[0]) || !isSame(now[1], f.seen[1]) {
		f.seen = now
		fresh, err := ReadPair(f.cert, f.key)
		if err != nil {
			f.log.Warn("the new certificate can't be used, the old one stays", "error", adapter.WithoutAddresses(err))
			return f.now, nil
		}
		f.now = fresh
		f.log.Info("the certificate has been read again")
	}
	return f.now, nil
}
