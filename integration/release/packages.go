package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// nfpm makes .deb and .rpm. It is run as a tool, so that what it needs stays out of go.mod.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2" // the last one whose modules the module proxy has

// A packaged file is one of a package.
type packaged struct {
	from, to string
	mode     os.FileMode
	config   bool   // the user's changes stay
	link     bool   // a symbolic link with the text from
	only     string // "deb" or "rpm"; "": both
}

// packages makes a release, and a .deb and a .rpm of it.
func packages(args []string) error {
	flags := flag.NewFlagSet("packages", flag.ContinueOnError)
	version := flags.String("version", "", "of the packages; without it, one made of the time of the source")
	maintainer := flags.String("maintainer", cmp.Or(os.Getenv("DEBFULLNAME"), "ptgate")+" <"+cmp.Or(os.Getenv("DEBEMAIL"), "ptgate@example.org")+">",
		"NAME <ADDRESS>, of the packages; without it, that of DEBFULLNAME and DEBEMAIL")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: release packages [-version V] [-maintainer M] DIR")
	}
	dir, err := filepath.Abs(flags.Arg(0))
	if err != nil {
		return err
	}
	p := pack{dir: dir, version: cmp.Or(*version, stampedVersion()), maintainer: *maintainer, at: stamp()}
	if err := release(dir, p.version); err != nil {
		return err
	}
	if p.work, err = os.MkdirTemp("", "packages-"); err != nil {
		return err
	}
	defer os.RemoveAll(p.work)
	if err := errors.Join(p.take(), p.prepare()); err != nil {
		return err
	}
	for _, kind := range []string{"deb", "rpm"} {
		if err := p.make(kind); err != nil {
			return err
		}
	}
	return nil
}

// stampedVersion is one that grows with the time of the source.
func stampedVersion() string { return stamp().Format("0.0.20060102150405") }

// A pack is what the packages of one release have in common.
type pack struct {
	dir, work           string
	version, maintainer string
	at                  time.Time // of all files
	files               []packaged
}

func (p *pack) add(from, to string, mode os.FileMode) {
	p.files = append(p.files, packaged{from: from, to: to, mode: mode})
}

// write adds a file with this text.
func (p *pack) write(to string, text []byte, mode os.FileMode, only string) error {
	from := filepath.Join(p.work, fmt.Sprint(len(p.files)))
	p.files = append(p.files, packaged{from: from, to: to, mode: mode, only: only})
	return os.WriteFile(from, text, 0o644)
}

// doc is the directory of the documents.
const doc = "/usr/share/doc/ptgate/"

// take adds what is in files of the source: units, configuration, documents, examples.
func (p *pack) take() error {
	p.add("systemd/ptgate.service", "/usr/lib/systemd/system/ptgate.service", 0o644)
	p.add("systemd/user/ptgate.service", "/usr/lib/systemd/user/ptgate.service", 0o644)
	p.add("systemd/ptgate.sysusers.conf", "/usr/lib/sysusers.d/ptgate.conf", 0o644)
	p.files = append(p.files, packaged{from: "configs/default.toml", to: "/etc/ptgate/ptgate.toml", mode: 0o600, config: true})
	// Debian's name for them is examples; the documents have links to configs.
	p.files = append(p.files, packaged{from: "examples", to: doc + "configs", link: true})
	examples, err := filepath.Glob("configs/*")
	if err != nil {
		return err
	}
	for _, file := range examples {
		if filepath.Ext(file) != ".md" {
			p.add(file, doc+"examples/"+filepath.Base(file), 0o644)
		}
	}
	var documents []string
	for _, pattern := range []string{"README.md", "*/README.md", "*/*/README.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		documents = append(documents, files...)
	}
	places := map[string]string{"LICENSE": doc + "copyright"} // which has it
	for _, f := range p.files {
		places[f.from] = f.to
	}
	for _, file := range documents {
		places[file] = doc + file
	}
	for _, file := range documents {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		to := doc + file
		if base, ok := strings.CutPrefix(file, "configs/"); ok {
			to = doc + "examples/" + base
		}
		if err := p.write(to, installed(text, file, places), 0o644, ""); err != nil {
			return err
		}
	}
	return nil
}

// link is one in a document: its text, its file, and the heading in that.
var link = regexp.MustCompile(`\[([^\]\n]*)\]\(([^):#]+)(#[^)]*)?\)`)

// installed is the text of a document whose links lead to where a package has the files.
// Of a link to a file that it does not have, the text stays.
func installed(text []byte, document string, places map[string]string) []byte {
	return link.ReplaceAllFunc(text, func(found []byte) []byte {
		m := link.FindSubmatch(found)
		to := path.Join(path.Dir(document), string(m[2]))
		switch place := places[to]; {
		case place == "":
			return m[1]
		case place == doc+to, strings.HasPrefix(to, "configs/"): // as in the source
			return found
		default:
			return fmt.Appendf(nil, "[%s](%s%s)", m[1], place, m[3])
		}
	})
}

// prepare makes what is in no file of the source: the program, manual pages, completions,
// copyright.
func (p *pack) prepare() error {
	p.add(filepath.Join(p.dir, "ptgate"), "/usr/bin/ptgate", 0o755)
	p.add(filepath.Join(p.dir, "ptgate.spdx.json"), doc+"ptgate.spdx.json", 0o644)
	manual := filepath.Join(p.work, "manual")
	if err := os.Mkdir(manual, 0o755); err != nil {
		return err
	}
	if _, err := run(nil, "go", "test", "-count=1", "-run", "^TestManual$", program, "-manual", manual); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(manual, "*.1"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		if err := p.write("/usr/share/man/man1/"+filepath.Base(page)+".gz", compress(text), 0o644, ""); err != nil {
			return err
		}
	}
	for _, c := range []struct{ shell, to, only string }{
		{"bash", "/usr/share/bash-completion/completions/ptgate", ""},
		{"fish", "/usr/share/fish/vendor_completions.d/ptgate.fish", ""},
		{"zsh", "/usr/share/zsh/vendor-completions/_ptgate", "deb"},
		{"zsh", "/usr/share/zsh/site-functions/_ptgate", "rpm"},
	} {
		text, err := run(nil, filepath.Join(p.dir, "ptgate"), "completion", c.shell)
		if err != nil {
			return err
		}
		if err := p.write(c.to, []byte(text), 0o644, c.only); err != nil {
			return err
		}
	}
	for _, kind := range []string{"deb", "rpm"} {
		text, err := copyright(kind == "deb")
		if err != nil {
			return err
		}
		if err := p.write(doc+"copyright", text, 0o644, kind); err != nil {
			return err
		}
	}
	changelog := fmt.Sprintf("ptgate (%s) unstable; urgency=medium\n\n  * Made from the source of this time.\n\n -- %s  %s\n",
		p.version, p.maintainer, p.at.Format(time.RFC1123Z))
	return errors.Join(
		p.write(doc+"changelog.gz", compress([]byte(changelog)), 0o644, "deb"),
		p.write("/usr/share/lintian/overrides/ptgate", []byte(overrides), 0o644, "deb"))
}

// overrides are what lintian remarks and is meant so.
const overrides = `# A Go program: it has no libraries of the system, so that it runs on any.
ptgate: statically-linked-binary [usr/bin/ptgate]
# It has secrets.
ptgate: non-standard-file-perm 0600 != 0644 [etc/ptgate/ptgate.toml]
`

// compress is gzip -9n, always the same.
func compress(text []byte) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	w.Write(text)
	w.Close()
	return out.Bytes()
}

// common are licences that each Debian has in /usr/share/common-licenses, and a sentence of
// each that only its full text has.
var common = []struct{ file, mark string }{
	{"GPL-3", "Everyone is permitted to copy and distribute verbatim copies of this license document"},
	{"Apache-2.0", "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"},
}

// notices are the files whose texts go with what is linked.
var notices = regexp.MustCompile(licenceFile.String() + `|(?i)^notice`)

// copyright has the licences of the source and of all that is linked, with their texts; on
// Debian without those that it has already.
func copyright(debian bool) ([]byte, error) {
	own, err := os.ReadFile("LICENSE")
	if err != nil {
		return nil, err
	}
	modules, err := linked(runtime.GOOS)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "The program as a whole is distributed under the GNU General Public License, version 3\n"+
		"or later, which is one of the texts below, or /usr/share/common-licenses/GPL-3. Its own source has this licence:\n\n%s\n", own)
	fmt.Fprintf(&b, "The modules linked into it, with their licences and the texts of these:\n\n")
	for _, m := range modules {
		fmt.Fprintf(&b, "%s %s: %s\n", m.path, m.version, strings.Join(m.licences, ", "))
	}
	for _, m := range modules {
		entries, err := os.ReadDir(m.dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() || !notices.MatchString(e.Name()) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
			if err != nil {
				return nil, err
			}
			for _, c := range common {
				if debian && strings.Contains(spaces.ReplaceAllString(string(text), " "), c.mark) {
					text = []byte("The text of /usr/share/common-licenses/" + c.file + "\n")
				}
			}
			fmt.Fprintf(&b, "\n---- %s, %s\n\n%s\n", m.path, e.Name(), text)
		}
	}
	return b.Bytes(), nil
}

// What the packages say of themselves.
const (
	summary     = "gateway through pluggable transports, and its far end"
	description = `ptgate lets ordinary programs reach chosen destinations through pluggable
transports (obfs4, webtunnel and others), without Tor: as a proxy for SOCKS5
and HTTP beside the programs, as the server at the far end, or both.`
)

// directories are those that only this package has. An .rpm that does not list them leaves
// them behind.
func (p *pack) directories(kind string) []string {
	var all []string
	for _, f := range p.files {
		for dir := path.Dir(f.to); strings.Contains(dir, "/ptgate") && (f.only == "" || f.only == kind); dir = path.Dir(dir) {
			all = append(all, dir)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// make makes one package, twice, which must be the same.
func (p *pack) make(kind string) error {
	type object = map[string]any
	var contents []object
	for _, f := range p.files {
		if f.only != "" && f.only != kind {
			continue
		}
		owner := "root"
		if f.config && kind == "rpm" { // an upgrade gives a file of its own the owner that is here; dpkg keeps it
			owner = "ptgate"
		}
		c := object{"src": f.from, "dst": f.to, "file_info": object{"mode": f.mode, "owner": owner, "group": owner, "mtime": p.at}}
		switch {
		case f.config:
			c["type"] = "config|noreplace"
		case f.link:
			c["type"] = "symlink"
		}
		contents = append(contents, c)
	}
	for _, dir := range p.directories(kind) {
		contents = append(contents, object{"dst": dir, "type": "dir", "file_info": object{"mode": 0o755, "owner": "root", "group": "root", "mtime": p.at}})
	}
	slices.SortFunc(contents, func(a, b object) int { return strings.Compare(a["dst"].(string), b["dst"].(string)) })
	const scripts = "integration/release/packages/"
	config := object{
		"name": "ptgate", "arch": runtime.GOARCH, "platform": "linux", "version": p.version, "version_schema": "none",
		"section": "net", "priority": "optional", "maintainer": p.maintainer, "license": "GPL-3.0-or-later",
		"description": summary + "\n" + description, "mtime": p.at, "contents": contents,
	}
	if kind == "deb" {
		config["depends"] = []string{"systemd | systemd-standalone-sysusers | systemd-sysusers"}
		config["recommends"] = []string{"ca-certificates"}
		config["scripts"] = object{"postinstall": scripts + "postinst", "preremove": scripts + "prerm", "postremove": scripts + "postrm"}
	} else {
		config["depends"] = []string{"systemd"}
		config["description"] = description
		config["rpm"] = object{"summary": summary, "buildhost": "localhost"}
		users, err := os.ReadFile("systemd/ptgate.sysusers.conf")
		if err != nil {
			return err
		}
		pre := filepath.Join(p.work, "pre.rpm")
		if err := os.WriteFile(pre, fmt.Appendf(nil, "# The configuration belongs to this user, who has to be there before it.\nsystemd-sysusers - <<'END'\n%sEND\n", users), 0o644); err != nil {
			return err
		}
		config["scripts"] = object{"preinstall": pre, "postinstall": scripts + "post.rpm", "preremove": scripts + "preun.rpm", "postremove": scripts + "postun.rpm"}
	}
	text, err := json.Marshal(config) // JSON is YAML
	if err != nil {
		return err
	}
	file := filepath.Join(p.work, kind+".yaml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	env := []string{fmt.Sprintf("SOURCE_DATE_EPOCH=%d", p.at.Unix())}
	var made [2][]byte
	for i := range made {
		out := filepath.Join(p.work, fmt.Sprintf("%d.%s", i, kind))
		if _, err := run(env, "go", "run", nfpm, "package", "--config", file, "--packager", kind, "--target", out); err != nil {
			return err
		}
		if made[i], err = os.ReadFile(out); err != nil {
			return err
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		return fmt.Errorf("two .%s of the same files differ", kind)
	}
	name := fmt.Sprintf("ptgate_%s_%s.%s", p.version, runtime.GOARCH, kind)
	fmt.Println(name)
	return os.WriteFile(filepath.Join(p.dir, name), made[0], 0o644)
}
