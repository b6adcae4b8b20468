// Package redact makes the texts of errors for the log. If the log is private, they
// contain no destination, no client address and no bridge args.
package redact

import "ptgate/adapter"

// Text returns err's text: if private is true, the one that adapter.WithoutAddresses
// makes, otherwise the full one. It is "" for nil.
func Text(err error, private bool) string {
	if private {
		err = adapter.WithoutAddresses(err)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}
