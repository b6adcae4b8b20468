package outcome_test

import (
	"fmt"
	"log/slog"
	"os"

	"ptgate/gateway/outcome"
)

// A thousand clients are one too many, and the log has two lines of it.
func Example() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
	book := outcome.New(log)
	book.Add(outcome.Accepted, outcome.By("http")) // counted, and not logged
	for port := range 1000 {
		book.Add(outcome.OverLimit, outcome.By("http"), "client", fmt.Sprint("127.0.0.1:", 40000+port))
	}
	book.Close()
	for _, v := range book.Snapshot()[:2] {
		fmt.Println(v.Name, v.Labels, v.Value)
	}
	// Output:
	// level=WARN msg="connection refused: there are as many as there may be" front=http client=127.0.0.1:40000
	// level=WARN msg="connection refused: there are as many as there may be" front=http more=999
	// accepted map[front:http] 1
	// over_limit map[front:http] 1000
}
