"""What can be read of an access token, and with which keys is it checked?"""
