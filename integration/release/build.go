package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func build(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: release build DIR")
	}
	dir, err := filepath.Abs(args[0])
	if err != nil {
		return err
	}
	return release(dir, stampedVersion())
}

// release makes the program twice: here, and from a copy of the source in another directory
// with an empty build cache. Both must be the same, byte for byte. It writes the program, its
// SBOM and a file of check sums.
func release(dir, version string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	first, err := compile(root, filepath.Join(dir, "ptgate"), version, nil)
	if err != nil {
		return err
	}
	source := filepath.Join(work, "elsewhere", "source")
	if err := copySource(root, source); err != nil {
		return err
	}
	second, err := compile(source, filepath.Join(work, "ptgate"), version, []string{"GOCACHE=" + filepath.Join(work, "cache")})
	if err != nil {
		return err
	}
	if first != second {
		return fmt.Errorf("two builds of the same source differ: %s and %s", first, second)
	}
	modules, err := linked(runtime.GOOS)
	if err != nil {
		return err
	}
	sbom, err := makeSBOM(first, modules, stamp())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ptgate.spdx.json"), sbom, 0o644); err != nil {
		return err
	}
	sum := sha256.Sum256(sbom)
	sums := fmt.Sprintf("%s  ptgate\n%x  ptgate.spdx.json\n", first, sum)
	fmt.Print(sums)
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums), 0o644)
}

// compile builds the program of the source in root, without symbols, and returns its check
// sum.
func compile(root, out, version string, env []string) (sum string, err error) {
	env = append(env, "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if _, err := run(env, "go", "-C", root, "build", "-trimpath", "-buildvcs=false", "-ldflags=-buildid= -s -w -X main.version="+version, "-o", out, program); err != nil {
		return "", err
	}
	b, err := os.ReadFile(out)
	if err != nil {
		return "", err
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:]), nil
}

// copySource copies what the program is built from.
func copySource(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && name != ".":
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), text, 0o644)
	})
}

// stamp is the time of the source, so that the SBOM is reproducible, too: that of
// SOURCE_DATE_EPOCH, or of the last commit.
func stamp() time.Time {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		text, _ = run(nil, "git", "log", "-1", "--format=%ct") // without git: 1970
	}
	seconds := int64(0)
	fmt.Sscan(text, &seconds)
	return time.Unix(seconds, 0).UTC()
}

// makeSBOM is a document of SPDX 2.3 about the program with this check sum.
func makeSBOM(sum string, modules []*module, at time.Time) ([]byte, error) {
	type object = map[string]any
	pkg := func(id, name, version, licence string) object {
		return object{"SPDXID": id, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION",
			"filesAnalyzed": false, "licenseConcluded": licence, "licenseDeclared": licence, "copyrightText": "NOASSERTION"}
	}
	main := pkg("SPDXRef-ptgate", "ptgate", "NOASSERTION", "GPL-3.0-or-later")
	main["checksums"] = []object{{"algorithm": "SHA256", "checksumValue": sum}}
	packages := []object{main, pkg("SPDXRef-go", "std", runtime.Version(), "BSD-3-Clause")}
	relations := []object{
		{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-ptgate"},
		{"spdxElementId": "SPDXRef-ptgate", "relationshipType": "STATIC_LINK", "relatedSpdxElement": "SPDXRef-go"},
	}
	for i, m := range modules {
		id := fmt.Sprintf("SPDXRef-module-%d", i+1)
		p := pkg(id, m.path, m.version, strings.Join(m.licences, " AND "))
		p["externalRefs"] = []object{{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
			"referenceLocator": "pkg:golang/" + m.path + "@" + m.version}}
		if hash, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:")); err == nil {
			// go.sum's, of the list of the module's files.
			p["comment"] = "go.sum h1: " + hex.EncodeToString(hash)
		}
		packages = append(packages, p)
		relations = append(relations, object{"spdxElementId": "SPDXRef-ptgate", "relationshipType": "STATIC_LINK", "relatedSpdxElement": id})
	}
	b, err := json.MarshalIndent(object{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "ptgate",
		"documentNamespace": "https://spdx.org/spdxdocs/ptgate-" + sum,
		"creationInfo":      object{"created": at.Format(time.RFC3339), "creators": []string{"Tool: ptgate-release"}},
		"packages":          packages, "relationships": relations,
	}, "", "  ")
	return append(b, '\n'), err
}
