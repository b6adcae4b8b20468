package config

import (
	"errors"
	"fmt"
	"io/fs"

	"ptgate/gateway/permissions"
	"ptgate/gateway/users"
)

// AsksUsers tells whether the exit serves its users only.
func (e *Exit) AsksUsers() bool { return len(e.Users) > 0 || e.UsersFile != "" }

// ReadUsers reads the users_file of cfg as it is now. cfg must have one.
func (cfg *Config) ReadUsers() ([]users.User, []Problem) {
	all, problems := readUsers(cfg.Exit.UsersFile, cfg.Exit.UsersFile, cfg.Exit.Users, permissions.Check)
	if HasError(problems) {
		return nil, problems
	}
	return all, problems
}

// readUsers reads the file at path, which problems call shown. A file that is not there yet
// has no users. table are the users of the configuration itself.
func readUsers(path, shown string, table map[string]string, check func(string, fs.FileInfo) error) ([]users.User, []Problem) {
	doc, info, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, []Problem{{shown, 0, "there is no such file yet, so that nobody can use the exit: `ptgate invite NAME` makes it", true}}
	}
	switch {
	case err == nil:
		err = check(path, info)
	case errors.Is(err, errTooLarge): // what it says of routes is of no use here
		err = fmt.Errorf("is larger than %d MiB: take those out whose time is over, or give the others a server of their own", maxFile>>20)
	}
	if err != nil {
		return nil, []Problem{{File: shown, Message: err.Error()}}
	}
	var problems []Problem
	if m := info.Mode(); m.IsRegular() && m.Perm()&0o077 != 0 {
		problems = append(problems, Problem{shown, 0, fmt.Sprintf("others can read who the users are (mode %#o): chmod 600 %s", m.Perm(), shown), true})
	}
	all, lines, bad := users.Parse(string(doc))
	for _, p := range bad {
		problems = append(problems, Problem{File: shown, Line: p.Line, Message: p.Message})
	}
	for i, u := range all {
		if _, ok := table[u.Name]; ok {
			problems = append(problems, Problem{File: shown, Line: lines[i], Message: fmt.Sprintf("the user %q is one of [exit] users, too: take one of them out", u.Name)})
		}
	}
	return all, problems
}

// usersFile reads the key users_file of [exit].
func (t *table) usersFile(e *Exit) {
	name := t.str("users_file", "")
	if name == "" {
		return
	}
	e.UsersFile = t.l.path(name)
	all, problems := readUsers(e.UsersFile, t.l.shown(name), e.Users, t.l.check)
	e.FileUsers = all
	t.l.problems = append(t.l.problems, problems...)
}
