package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ptgate/gateway/config"
	"ptgate/gateway/serve"
	"ptgate/routes"
)

// What a shell offers when a word is completed. Cobra does commands and the names of flags.

// completeFlag offers words for the value of a flag.
func completeFlag(cmd *cobra.Command, flag string, words cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, words); err != nil {
		panic(err) // there is no such flag, or it has words already
	}
}

// completeWords keeps the shell from offering files where a command takes none.
func completeWords(root *cobra.Command) {
	for _, c := range root.Commands() {
		if c.ValidArgsFunction == nil && !c.DisableFlagParsing {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
}

// directories offers directories.
var directories = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)

// files offers files of one type.
func files(extension string) cobra.CompletionFunc {
	return cobra.FixedCompletions([]string{extension}, cobra.ShellCompDirectiveFilterFileExt)
}

// bridgeNames offers the bridges of the configuration.
func bridgeNames(file *string) cobra.CompletionFunc {
	return named(file, func(cfg *config.Config) (words []cobra.Completion) {
		for _, b := range cfg.Bridges {
			words = append(words, cobra.CompletionWithDesc(b.Name, b.Transport+", "+string(b.Far)))
		}
		return words
	})
}

// userNames offers the users of the configuration's users_file.
func userNames(file *string) cobra.CompletionFunc {
	return named(file, func(cfg *config.Config) (words []cobra.Completion) {
		for _, u := range cfg.Exit.FileUsers {
			words = append(words, u.Name)
		}
		return words
	})
}

// routePatterns offers the patterns of the configuration's routes that lead to bridges. Those of a
// list file are left out: it may have a million.
func routePatterns(file *string) cobra.CompletionFunc {
	return named(file, func(cfg *config.Config) (words []cobra.Completion) {
		for rule, r := range cfg.Routes {
			if r.Action != config.ActionBridges {
				continue
			}
			for n := range cfg.Table.Patterns(rule) {
				if file, _, pattern := cfg.Where(routes.Match{Rule: rule, Pattern: n}); sameFile(file, cfg.Path) {
					words = append(words, pattern)
				}
			}
		}
		return words
	})
}

// rotatable offers the [[serve]] of the configuration that can be rotated.
func rotatable(file *string) cobra.CompletionFunc {
	return named(file, func(cfg *config.Config) (words []cobra.Completion) {
		for _, s := range cfg.Serve {
			if serve.Rotates(s) {
				words = append(words, cobra.CompletionWithDesc(strconv.Itoa(int(s.Bind.Port())), s.Transport))
			}
		}
		return words
	})
}

// named offers words of the configuration that are not in the line yet. A file with errors has
// none.
func named(file *string, words func(*config.Config) []cobra.Completion) cobra.CompletionFunc {
	return func(_ *cobra.Command, before []string, _ string) (rest []cobra.Completion, _ cobra.ShellCompDirective) {
		const noFiles = cobra.ShellCompDirectiveNoFileComp
		path, err := config.Find(*file)
		if err != nil {
			return nil, noFiles
		}
		cfg, _ := config.Load(path)
		if cfg == nil {
			return nil, noFiles
		}
		for _, word := range words(cfg) {
			name, _, _ := strings.Cut(word, "\t")
			if !slices.Contains(before, name) {
				rest = append(rest, word)
			}
		}
		return rest, noFiles
	}
}
