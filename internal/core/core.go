package core

// Core is the only way in. Its methods may be called from any goroutine.
type Core struct{}
