package state

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// RootName names the user that must exist before user authentication is turned on, and the role that permits everything.
const RootName = "root"

// AuthView is the user store at one revision. It is immutable and may be shared.
type AuthView struct {
	enabled  bool
	revision uint64
	users    []*user // by name
	roles    []*role // by name
}

// user is immutable but for the cache.
type user struct {
	name       string
	hash       []byte
	noPassword bool
	since      uint64   // revision of creation or of the last password
	roles      []string // sorted
	root       bool

	merged atomic.Pointer[mergedPermissions]
}

// mergedPermissions is the union of the permissions of a user's roles. It holds while the roles are the same objects.
type mergedPermissions struct {
	from        []*role // one for each of the user's roles; nil where there is none of that name
	read, write policy.PermissionSet
}

type role struct {
	name  string
	perms []Permission // by start, then end
}

// User is one user as others may see it. Its password hash is not printed.
type User struct {
	Name       string
	Roles      []string // sorted; not to be changed
	NoPassword bool
	hash       []byte
}

// PasswordHash returns the bcrypt hash of the user's password, nil if it has none. It must not be changed or logged.
func (u User) PasswordHash() []byte { return u.hash }

// String returns the user's name.
func (u User) String() string { return u.Name }

// GoString keeps the hash out of %#v.
func (u User) GoString() string { return fmt.Sprintf("state.User{%q}", u.Name) }

// String describes the change without the password hash.
func (c *AuthChange) String() string {
	return fmt.Sprintf("auth change %d (user %q, role %q)", c.Op, c.User, c.Role)
}

// GoString keeps the password hash out of %#v.
func (c *AuthChange) GoString() string { return c.String() }

// Enabled reports whether user authentication is on.
func (v *AuthView) Enabled() bool { return v.enabled }

// Revision returns the revision of the user store: 1 at first, one more with each change.
func (v *AuthView) Revision() uint64 { return v.revision }

// User returns one user.
func (v *AuthView) User(name string) (User, bool) {
	u := v.user(name)
	if u == nil {
		return User{}, false
	}
	return User{Name: u.name, Roles: u.roles, NoPassword: u.noPassword, hash: u.hash}, true
}

// Users returns the names of all users, sorted.
func (v *AuthView) Users() []string {
	names := make([]string, len(v.users))
	for i, u := range v.users {
		names[i] = u.name
	}
	return names
}

// Role returns the permissions of a role, by start, then end. The root role, where it exists, has one over everything.
func (v *AuthView) Role(name string) ([]Permission, bool) {
	r := v.role(name)
	switch {
	case r == nil:
		return nil, false
	case name == RootName:
		return []Permission{{Span: storage.Span{Start: []byte{}}, Read: true, Write: true}}, true
	}
	return r.perms, true
}

// Roles returns the names of all roles, sorted.
func (v *AuthView) Roles() []string {
	names := make([]string, len(v.roles))
	for i, r := range v.roles {
		names[i] = r.name
	}
	return names
}

// HasRole reports whether the role was granted to the user.
func (v *AuthView) HasRole(userName, roleName string) bool {
	u := v.user(userName)
	return u != nil && u.has(roleName)
}

func (u *user) has(roleName string) bool {
	_, ok := slices.BinarySearch(u.roles, roleName)
	return ok
}

func (v *AuthView) findUser(name string) (int, bool) {
	return slices.BinarySearchFunc(v.users, name, func(u *user, name string) int { return strings.Compare(u.name, name) })
}

func (v *AuthView) user(name string) *user {
	if i, ok := v.findUser(name); ok {
		return v.users[i]
	}
	return nil
}

func (v *AuthView) findRole(name string) (int, bool) {
	return slices.BinarySearchFunc(v.roles, name, func(r *role, name string) int { return strings.Compare(r.name, name) })
}

func (v *AuthView) role(name string) *role {
	if i, ok := v.findRole(name); ok {
		return v.roles[i]
	}
	return nil
}

// permissions returns what u's roles permit in this view.
func (v *AuthView) permissions(u *user) *mergedPermissions {
	merged := u.merged.Load()
	if merged != nil && v.current(u, merged) {
		return merged
	}
	merged = &mergedPermissions{from: make([]*role, len(u.roles))}
	var read, write []policy.Span
	for i, name := range u.roles {
		r := v.role(name)
		merged.from[i] = r
		if r == nil {
			continue
		}
		for _, p := range r.perms {
			if p.Read {
				read = append(read, policy.Span(p.Span))
			}
			if p.Write {
				write = append(write, policy.Span(p.Span))
			}
		}
	}
	merged.read, merged.write = policy.NewPermissionSet(read...), policy.NewPermissionSet(write...)
	u.merged.Store(merged)
	return merged
}

func (v *AuthView) current(u *user, merged *mergedPermissions) bool {
	for i, name := range u.roles {
		if v.role(name) != merged.from[i] {
			return false
		}
	}
	return true
}

// right is what a request wants of keys.
type right uint8

const (
	wantRead right = iota
	wantWrite
)

// keys decides whether who may read or write the keys of span in SpaceEtcd.
func (v *AuthView) keys(who *policy.Principal, span storage.Span, want right) *fault.Error {
	if who.IsAdmin() {
		return nil
	}
	if !v.enabled {
		return whenAuthOff(who)
	}
	u, f := v.actingUser(who)
	if f != nil {
		return f
	}
	if who.UserRevision() < v.revision {
		return ErrAuthOldRevision
	}
	if u == nil {
		return ErrPermissionDenied
	}
	if u.root {
		return nil
	}
	set := &v.permissions(u).read
	if want == wantWrite {
		set = &v.permissions(u).write
	}
	if !set.Contains(policy.Span(span)) {
		return ErrPermissionDenied
	}
	return nil
}

// whenAuthOff is etcd's rule "auth off = all", for those who came in where it holds.
func whenAuthOff(who *policy.Principal) *fault.Error {
	if who.OpenWhenAuthOff() {
		return nil
	}
	return ErrPermissionDenied
}

// actingUser returns the user that who acts as; nil if the store has none of that name.
func (v *AuthView) actingUser(who *policy.Principal) (*user, *fault.Error) {
	if !mayActAsUser(who) {
		return nil, ErrPermissionDenied
	}
	if who.User() == "" {
		return nil, ErrUserEmpty
	}
	return v.user(who.User()), nil
}

// mayActAsUser reports whether who is of a kind that users and roles are meant for.
func mayActAsUser(who *policy.Principal) bool {
	switch who.Kind() {
	case policy.Anonymous:
		return who.OpenWhenAuthOff()
	case policy.Holder:
		return who.OpenWhenAuthOff() || who.Role() == policy.RoleClient
	}
	return false
}

// encode returns the row of a user.
func (u *user) encode() []byte {
	b := []byte{rowVersion, flag(u.noPassword, 1)}
	b = binary.AppendUvarint(b, u.since)
	return appendStrings(appendBytes(b, u.hash), u.roles)
}

func decodeUser(name string, value []byte) (*user, error) {
	d := rowDecoder(value)
	u := &user{name: name, noPassword: d.flags(1) == 1, since: d.uvarint()}
	u.hash = slices.Clone(d.bytes())
	u.roles = d.strings()
	u.root = slices.Contains(u.roles, RootName)
	return u, d.rowErr(tableUser)
}

// encode returns the row of a role.
func (r *role) encode() []byte {
	b := binary.AppendUvarint([]byte{rowVersion}, uint64(len(r.perms)))
	for _, p := range r.perms {
		b = appendSpan(append(b, flag(p.Read, 1)|flag(p.Write, 2)), p.Span)
	}
	return b
}

func decodeRole(name string, value []byte) (*role, error) {
	d := rowDecoder(slices.Clone(value)) // spans alias it
	r := &role{name: name}
	for range d.count(2) {
		flags := d.flags(3)
		r.perms = append(r.perms, Permission{Read: flags&1 != 0, Write: flags&2 != 0, Span: d.span()})
	}
	return r, d.rowErr(tableRole)
}

func loadAuth(r storage.Reader) (*AuthView, error) {
	value, ok, err := r.Get(authKey(), nil)
	if err != nil {
		return nil, fmt.Errorf("state: open: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("%w: no user store", ErrBadRow)
	}
	row, err := decodeAuth(value)
	if err != nil {
		return nil, err
	}
	v := &AuthView{enabled: row.enabled, revision: row.revision}
	err = readRows(r, tableUser, func(rest, value []byte) error {
		u, err := decodeUser(string(rest), value)
		v.users = append(v.users, u)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = readRows(r, tableRole, func(rest, value []byte) error {
		role, err := decodeRole(string(rest), value)
		v.roles = append(v.roles, role)
		return err
	})
	return v, err
}
