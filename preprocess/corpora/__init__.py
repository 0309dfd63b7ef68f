"""What the scripts of `preprocess/` share; importable because Python looks beside a script first."""
