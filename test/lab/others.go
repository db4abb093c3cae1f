package main

import (
	"context"
	"sync"
	"time"
)

// revocationAllowance is how long after its acknowledgement a revocation may still be taking hold, on members that hear the
// leader.
const revocationAllowance = time.Second

// others starts what only `holdfast server` has.
func (lab *laboratory) others(ctx context.Context, work *sync.WaitGroup) {
}
