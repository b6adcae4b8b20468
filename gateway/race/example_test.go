package race_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ptgate/gateway/race"
)

func Example() {
	var attempts sync.WaitGroup
	r := race.Race[string, int]{
		Try: func(_ context.Context, host string) (int, error) {
			if host == "down.example" {
				return 0, errors.New("refused")
			}
			return len(host), nil
		},
		Drop:    func(int) {},
		Go:      func(attempt func()) bool { attempts.Go(attempt); return true },
		Stagger: time.Second,
	}
	o := r.Run(context.Background(), []string{"down.example", "up.example"}, nil)
	attempts.Wait()
	fmt.Println(o.Value, o.Err, o.Failed)
	// Output:
	// 10 <nil> [refused]
}
