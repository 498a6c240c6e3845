# Homebrew formula: brew install --formula ./tools/m3mlx.rb
# For a release: url and sha256 of its sdist, as `shasum -a 256 dist/m3mlx-*.tar.gz` prints.
class M3mlx < Formula
  include Language::Python::Virtualenv

  desc "Language model that remembers your documents as explicit memory"
  homepage "https://github.com/m3mlx/m3mlx"
  url "https://github.com/m3mlx/m3mlx/archive/refs/tags/v0.1.0.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "MIT"
  head "https://github.com/m3mlx/m3mlx.git", branch: "main"

  depends_on arch: :arm64
  depends_on :macos
  depends_on "python@3.13"

  def install
    virtualenv_create(libexec, "python3.13", without_pip: false)
    system libexec/"bin/python", "-m", "pip", "install", "#{buildpath}[serve,watch,keyring]"
    bin.install_symlink libexec/"bin/m3mlx"
    generate_completions_from_executable(bin/"m3mlx", "completion")
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/m3mlx --version")
    assert_match "nothing is memorized", shell_output("#{bin}/m3mlx list 2>&1", 1)
  end
end
