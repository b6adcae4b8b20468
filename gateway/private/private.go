// Package private makes texts fit for a log that is to hold no destination, no
// client address and no bridge args.
package private

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"ptgate/adapter"
)

// Text is err's text; with private, without what it quotes of a transport program,
// which may say anything, and without the addresses of connections. The error
// itself is untouched.
func Text(err error, private bool) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if !private {
		return text
	}
	if e, ok := errors.AsType[*adapter.StartError](err); ok {
		brief := fmt.Sprintf("start %q: %s: %s", e.Program, e.Stage, Text(e.Err, true))
		text = strings.ReplaceAll(text, e.Error(), brief)
	} else if e, ok := errors.AsType[*adapter.ExitError](err); ok {
		text = strings.ReplaceAll(text, e.Error(), fmt.Sprintf("transport program ended: %v", e.State))
	}
	if e, ok := errors.AsType[*adapter.MethodError](err); ok {
		text = strings.ReplaceAll(text, e.Error(), fmt.Sprintf("transport %q: %v", e.Transport, e.Err))
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		text = strings.ReplaceAll(text, e.Error(), e.Op+": "+e.Err.Error())
	}
	return text
}
