// Package redact makes the texts of errors, and of what transport programs say, for the
// log. If the log is private, they have only classes of failures: no destination, no
// client, no bridge's address and no args, whatever the error is made of.
package redact

import (
	"log/slog"
	"slices"

	"ptgate/adapter"
)

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

// severities are those of pt-spec 3.3.4. A program may send another word.
var severities = []string{"error", "warning", "notice", "info", "debug"}

// Event logs what a transport program says. It may name bridges, destinations and
// clients, so a private log has only the fact that the program has said something.
func Event(log *slog.Logger, private bool, e adapter.Event) {
	if !private || e.Kind == adapter.EventDropped {
		adapter.LogEvent(log, e)
		return
	}
	attrs := []any{"kind", e.Kind.String()}
	if slices.Contains(severities, e.Severity) {
		attrs = append(attrs, "severity", e.Severity)
	}
	log.Debug("the transport program has something to say; log.private keeps it out", attrs...)
}
