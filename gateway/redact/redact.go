// Package redact gives the texts of errors for a log that may be private: one that
// holds no destination, no client address and no bridge args.
package redact

import "ptgate/adapter"

// Text is err's text, with private in the form that adapter.WithoutAddresses gives it.
// It is "" for nil.
func Text(err error, private bool) string {
	if private {
		err = adapter.WithoutAddresses(err)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}
