// Package recipes tests recipes of docs/recipes and the Ansible modules of docs/ansible with the
// programs that they are for, which make recipes-test installs.
package recipes
