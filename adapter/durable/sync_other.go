//go:build !unix

package durable

// syncDir has nothing to do: directories can't be synced here.
func syncDir(string) error { return nil }
