// Package opentofu pins OpenTofu, whose consul backend is tested from here. The backend is internal to it, so nothing can be
// imported: the conformance program builds its tests by their path.
package opentofu
