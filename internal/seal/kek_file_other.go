//go:build !unix

package seal

import "io/fs"

// checkOwner has nothing to look at where files have no numeric owner.
func checkOwner(fs.FileInfo) error { return nil }
