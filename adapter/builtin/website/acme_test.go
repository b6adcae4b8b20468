package website

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A certificate that is due for another one as soon as it is there, because this machine's
// clock is wrong, is not asked for again and again: an authority gives a few a week.
func TestClockAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		a := &authority{log: slog.New(slog.DiscardHandler)}
		asked := 0
		a.keep(ctx, func(context.Context) error {
			if asked++; asked == 100 {
				cancel()
			}
			a.now.Store(&tls.Certificate{Leaf: &x509.Certificate{NotBefore: time.Now().Add(-80 * 24 * time.Hour), NotAfter: time.Now().Add(10 * 24 * time.Hour)}})
			return ctx.Err()
		})
		if asked > 7 {
			t.Errorf("asked %d times in a day", asked)
		}
	})
}
