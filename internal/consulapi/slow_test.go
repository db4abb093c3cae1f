package consulapi

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSlowLongBodies: while long bodies come slowly no more of them are read than take turns, and small ones pass.
func TestSlowLongBodies(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	for range largeBodies + 8 {
		body, w := io.Pipe()
		context.AfterFunc(ctx, func() { w.CloseWithError(context.Canceled) })
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, l.url+"/v1/kv/slow", io.MultiReader(bytes.NewReader(make([]byte, smallBody)), body))
		if err != nil {
			t.Fatal(err)
		}
		sending.Go(func() {
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
			}
		})
	}
	for deadline := time.Now().Add(10 * time.Second); len(l.api.large) < largeBodies; {
		if time.Now().After(deadline) {
			t.Fatalf("%d long bodies are read", len(l.api.large))
		}
		l.ok("PUT", "/v1/kv/small", strings.Repeat("x", smallBody-1))
	}
	cancel()
	sending.Wait()
	l.ok("PUT", "/v1/kv/long", strings.Repeat("x", maxValue)) // every turn is given back
}
