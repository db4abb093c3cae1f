package state

import (
	"bytes"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/storage"
)

// authEdit returns a view of the user store that this Apply may change; the published one stays as it is.
func (a *application) authEdit() *AuthView {
	if !a.authOwned {
		copied := &AuthView{
			enabled: a.auth.enabled, revision: a.auth.revision,
			users: slices.Clone(a.auth.users), roles: slices.Clone(a.auth.roles),
		}
		a.auth, a.authOwned = copied, true
	}
	return a.auth
}

// commitAuth writes the store's row, with the next revision if bump is set.
func (a *application) commitAuth(bump bool) {
	v := a.authEdit()
	if bump {
		v.revision++
		a.out.Effects.AuthRevision = v.revision
	}
	a.batch.Set(authKey(), authRow{enabled: v.enabled, revision: v.revision}.encode())
}

func (a *application) switchAuth(on bool) {
	a.authEdit().enabled = on
	a.out.Effects.AuthEnabled = &on
}

func (a *application) setUser(u *user) {
	u.root = u.has(RootName)
	v := a.authEdit()
	if i, ok := v.findUser(u.name); ok {
		v.users[i] = u
	} else {
		v.users = slices.Insert(v.users, i, u)
	}
	a.batch.Set(userKey(u.name), u.encode())
}

func (a *application) setRole(r *role) {
	v := a.authEdit()
	if i, ok := v.findRole(r.name); ok {
		v.roles[i] = r
	} else {
		v.roles = slices.Insert(v.roles, i, r)
	}
	a.batch.Set(roleKey(r.name), r.encode())
}

// authChange decides one change of the user store, as etcd does. Turning authentication on gives no new revision.
func (a *application) authChange(c *AuthChange) (any, *fault.Error) {
	var f *fault.Error
	changed := true
	switch c.Op {
	case AuthEnable:
		return a.authEnable()
	case AuthDisable:
		if changed = a.auth.enabled; changed {
			a.switchAuth(false)
		}
	case UserAdd, UserDelete, UserChangePassword:
		f = a.userChange(c)
	case UserGrantRole, UserRevokeRole:
		changed, f = a.userRole(c)
	case RoleAdd, RoleDelete, RoleGrant, RoleRevoke:
		f = a.roleChange(c)
	}
	if f != nil {
		return nil, f
	}
	if changed {
		a.commitAuth(true)
	}
	return &AuthResult{Revision: a.auth.revision}, nil
}

func (a *application) authEnable() (any, *fault.Error) {
	if !a.auth.enabled {
		root := a.auth.user(RootName)
		if root == nil {
			return nil, ErrRootUserNotExist
		}
		if !root.root {
			return nil, ErrRootRoleNotExist
		}
		a.switchAuth(true)
		a.commitAuth(false)
	}
	return &AuthResult{Revision: a.auth.revision}, nil
}

func (a *application) userChange(c *AuthChange) *fault.Error {
	u := a.auth.user(c.User)
	switch c.Op {
	case UserAdd:
		if u != nil {
			return ErrUserAlreadyExist
		}
		added := &user{name: c.User, noPassword: c.NoPassword, since: a.auth.revision + 1}
		if !c.NoPassword {
			added.hash = slices.Clone(c.Hash)
		}
		a.setUser(added)
	case UserDelete:
		if a.auth.enabled && c.User == RootName {
			return ErrInvalidAuthMgmt
		}
		if u == nil {
			return ErrUserNotFound
		}
		v := a.authEdit()
		i, _ := v.findUser(c.User)
		v.users = slices.Delete(v.users, i, i+1)
		a.batch.Delete(userKey(c.User))
	case UserChangePassword:
		if u == nil {
			return ErrUserNotFound
		}
		if !u.noPassword && len(c.Hash) == 0 {
			return ErrMalformed
		}
		changed := &user{name: u.name, roles: u.roles, noPassword: u.noPassword, since: a.auth.revision + 1}
		if !u.noPassword {
			changed.hash = slices.Clone(c.Hash)
		}
		a.setUser(changed)
	}
	return nil
}

func (a *application) userRole(c *AuthChange) (changed bool, f *fault.Error) {
	if c.Op == UserRevokeRole && a.auth.enabled && c.User == RootName && c.Role == RootName {
		return false, ErrInvalidAuthMgmt
	}
	u := a.auth.user(c.User)
	if u == nil {
		return false, ErrUserNotFound
	}
	next := &user{name: u.name, hash: u.hash, noPassword: u.noPassword, since: u.since}
	at, has := slices.BinarySearch(u.roles, c.Role)
	switch c.Op {
	case UserGrantRole:
		if c.Role != RootName && a.auth.role(c.Role) == nil {
			return false, ErrRoleNotFound
		}
		if has {
			return false, nil
		}
		next.roles = slices.Insert(slices.Clone(u.roles), at, c.Role)
	case UserRevokeRole:
		if !has {
			return false, ErrRoleNotGranted
		}
		next.roles = without(u.roles, at)
	}
	a.setUser(next)
	return true, nil
}

// without returns list without the element at i, in a slice of its own.
func without[T any](list []T, i int) []T {
	return slices.Concat(list[:i], list[i+1:])
}

func (a *application) roleChange(c *AuthChange) *fault.Error {
	r := a.auth.role(c.Role)
	switch {
	case c.Op == RoleAdd && r != nil:
		return ErrRoleAlreadyExist
	case c.Op == RoleAdd:
		a.setRole(&role{name: c.Role})
		return nil
	case c.Op == RoleDelete && a.auth.enabled && c.Role == RootName:
		return ErrInvalidAuthMgmt
	case r == nil:
		return ErrRoleNotFound
	}
	at, has := slices.BinarySearchFunc(r.perms, c.Permission.Span, func(p Permission, s storage.Span) int { return compareSpans(p.Span, s) })
	switch c.Op {
	case RoleDelete:
		a.deleteRole(c.Role)
	case RoleGrant:
		p := c.Permission
		p.Span.Start = slices.Clone(p.Span.Start)
		p.Span.End = slices.Clone(p.Span.End)
		perms := slices.Clone(r.perms)
		if has {
			perms[at] = p
		} else {
			perms = slices.Insert(perms, at, p)
		}
		a.setRole(&role{name: r.name, perms: perms})
	case RoleRevoke:
		if !has {
			return ErrPermissionNotGranted
		}
		a.setRole(&role{name: r.name, perms: without(r.perms, at)})
	}
	return nil
}

// deleteRole removes a role and takes it from every user that has it.
func (a *application) deleteRole(name string) {
	v := a.authEdit()
	i, _ := v.findRole(name)
	v.roles = slices.Delete(v.roles, i, i+1)
	a.batch.Delete(roleKey(name))
	for _, u := range slices.Clone(v.users) {
		if at, has := slices.BinarySearch(u.roles, name); has {
			a.setUser(&user{name: u.name, hash: u.hash, noPassword: u.noPassword, since: u.since, roles: without(u.roles, at)})
		}
	}
}

// compareSpans orders spans by start, then end; no upper bound comes last.
func compareSpans(x, y storage.Span) int {
	if c := bytes.Compare(x.Start, y.Start); c != 0 {
		return c
	}
	switch {
	case x.End == nil && y.End == nil:
		return 0
	case x.End == nil:
		return 1
	case y.End == nil:
		return -1
	}
	return bytes.Compare(x.End, y.End)
}
