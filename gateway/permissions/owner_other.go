//go:build !unix

package permissions

import "io/fs"

// Modes here say only whether a file can be written at all.
const hasModes = false

// Owner is not known here.
func Owner(fs.FileInfo) (id uint32, ok bool) { return 0, false }

// Writable takes every directory for one in which files can be made: a mode does not tell.
func Writable(dir string) bool { return true }

// group is not known here.
func group(fs.FileInfo) (id uint32, ok bool) { return 0, false }
