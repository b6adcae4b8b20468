//go:build !unix

package main

import (
	"io/fs"
	"log/slog"
	"os"
	"syscall"

	"ptgate/gateway/config"
)

// checkFileLimit has nothing to tell: there is no limit of open files to be raised.
func checkFileLimit(*slog.Logger, *config.Limits) {}

// keepOwner leaves f to whoever runs ptgate: what the directory gives to new files
// holds for it, not the owner and the access list of the file that it replaces.
func keepOwner(*os.File, fs.FileInfo) error { return nil }

// lock does nothing: a directory can't be locked here.
func lock(*os.File) error { return nil }

// dieOf leaves the exit code to the caller: nobody dies of signals here.
func dieOf(syscall.Signal) {}
