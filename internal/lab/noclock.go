//go:build !laboratory

package lab

import "time"

// Step returns t as a clock shows it that was stepped by Skew: t itself, in this build.
func Step(t time.Time) time.Time { return t }
